"""A speech LM over the grid of any layout: trunk, embedding and heads as its configuration says."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.layouts import Ctc, Layout, Nar
from slm_jax.models.backbone import Backbone, BackboneConfig, KVCache, init_cache
from slm_jax.models.continuous import make_head
from slm_jax.models.cross_decoder import CrossDecoder, CrossDecoderConfig
from slm_jax.models.depth import DepthTransformer
from slm_jax.models.grid_config import GridLMConfig, chained, predicted
from slm_jax.models.grid_embedding import BACKBONE, GridEmbedding
from slm_jax.models.grid_losses import Columns, GridLosses, States
from slm_jax.models.nar import NarTrunk, stages
from slm_jax.models.second import Feed
from slm_jax.nn.layers import Embedding, Linear


class GridCache(NamedTuple):
    """What decoding keeps of the columns so far.

    Attributes:
      trunk, branch: of the layers.
      memory: the text LLM's states as the second transformer reads them, [B, T, r, E], or None.
    """

    trunk: Any
    branch: KVCache | None
    memory: jax.Array | None


class GridLM(GridLosses, nnx.Module):
    """Parameters: backbone/..., embedding/..., heads/ROW/..., depth/..., and what else there is.

    A batch has "tokens", "targets" int and "weights" f32 [B, R, S], "segment_ids", "positions" int
    [B, S], "seeds" uint32 [B]; with a row of vectors "vectors" and "vector_targets" f32 [B, S, L];
    with an upstream layout its grid under "upstream/...", "links" and "copies" int [B, S]
    (`Layout.links`).
    """

    def __init__(self, config: GridLMConfig, layout: Layout, rngs: nnx.Rngs):
        if config.backbone is None:
            raise ValueError("backbone must be set before the model is built")
        self.config, self.layout = config, layout
        self.nar, self.ctc = layout.holds(Nar), layout.holds(Ctc)
        self.rows, self.depth_rows = predicted(layout), config.depth_rows(layout)
        second, vectors = config.second, layout.vector_row
        width = config.backbone.width if second is None else second.table_width
        self.embedding = GridEmbedding(
            config.embedding, layout.rows, width, vectors.width if vectors else 0, rngs
        )
        self._build_trunks(rngs)
        width = (config.backbone if second is None else second.trunk).width
        own = [row for row in self.rows if not self._by_llm(row) and row not in self.depth_rows]
        axes = ("embed", "codes")
        self.digits = len(str(max(own, default=0)))  # so that the heads' names sort as numbers do
        sizes = {row: self.ids_of(row).stop - self.ids_of(row).start + self.ctc for row in own}
        self.heads = nnx.Dict(
            {self._name(r): Linear(width, n, rngs=rngs, axes=axes) for r, n in sizes.items()}
        )
        if config.depth is not None:
            rows = layout.rows
            self.depth = DepthTransformer(
                config.depth,
                width,
                tuple(0 if row is None else rows[row].vocab for row in self._before()),
                tuple(rows[row].classes - rows[row].lowest for row in self.depth_rows),
                rngs,
            )
        if config.continuous is not None:
            self.continuous = make_head(config.continuous, width, rngs)

    def _build_trunks(self, rngs: nnx.Rngs) -> None:
        config, second = self.config, self.config.second
        if self.nar:
            self.nar_trunk = NarTrunk(config.backbone, len(self.layout.rows), rngs)
            table = config.backbone
            self.table = Embedding(table.vocab_size, table.width, rngs=rngs)
            return
        self.backbone = Backbone(config.backbone, rngs)
        if second is not None:
            cross = isinstance(second.trunk, CrossDecoderConfig)
            self.feed = Feed(second, config.backbone.width, rngs)
            self.second = (CrossDecoder if cross else Backbone)(second.trunk, rngs)
        if config.branch is not None:
            self.branch = Backbone(self._branch_config(), rngs)

    def _branch_config(self) -> BackboneConfig:
        layers = self.config.branch.layers
        return dataclasses.replace(self.config.backbone, vocab_size=0, layers=layers)

    # What is read.

    def states(
        self, batch: Columns, key: jax.Array | None = None
    ) -> tuple[States, jax.Array | None]:
        """The heads' states of packed rows, and with `second` the text LLM's own [B, T, D'].

        `key` is of dropout, in a training step.
        """
        own, other = (None, None) if key is None else jax.random.split(key)
        segments, positions = batch["segment_ids"], batch["positions"]
        if self.nar:
            x = self._embed(batch, None)
            stage = stages(batch["weights"], segments)
            return States(self.nar_trunk(x, positions, segments, stage, own), None), None
        if self.config.second is None:
            x, sees = self._embed(batch, None), None
            if self.config.prefix:
                low, high = self.layout.streams[0].ranges[0]
                first = batch["tokens"][:, 0]
                sees = seen((low <= first) & (first < high), segments)
            run = self.backbone.run(x, positions, segments, None, tap=self._tap, key=own, sees=sees)
            hidden, tapped, _ = run
            if tapped is None:
                return States(hidden, None), None
            branch, _ = self.branch(tapped, positions, segments, key=other)
            return States(hidden, branch), None
        text = self.upstream(batch, own)
        memory = self.feed.memory(text)
        x = self._embed(batch, memory)
        if isinstance(self.second, CrossDecoder):
            known = batch["upstream/segment_ids"]
            memory = memory[:, :, 0]
            hidden, _ = self.second.run(x, positions, segments, None, memory, known, other)
        else:
            hidden, _ = self.second(x, positions, segments, key=other)
        return States(hidden, None), text

    def upstream(self, batch: Columns, key: jax.Array | None = None) -> jax.Array:
        """The text LLM's states [B, T, D'] of "upstream/tokens" and so on."""
        x = self.backbone.embed(batch["upstream/tokens"][:, 0])
        places = batch["upstream/positions"], batch["upstream/segment_ids"]
        return self.backbone(x, *places, key=key)[0]

    def init_cache(self, batch: int, length: int, columns: Columns | None = None) -> GridCache:
        """An empty cache for at most `length` columns; `columns` has the "upstream/..." if any."""
        branch = None
        if self.config.branch is not None:
            branch = init_cache(self._branch_config(), batch, length)
        if self.config.second is None:
            return GridCache(init_cache(self.config.backbone, batch, length), branch, None)
        memory = self.feed.memory(self.upstream(columns))
        if isinstance(self.second, CrossDecoder):
            known = columns["upstream/segment_ids"]
            return GridCache(
                self.second.init_cache(batch, length, memory[:, :, 0], known), None, memory
            )
        return GridCache(init_cache(self.second.config, batch, length), None, memory)

    def step(self, columns: Columns, cache: GridCache) -> tuple[States, GridCache]:
        """The heads' states of S more columns.

        Args:
          columns: "tokens" [B, R, S], "positions" [B, S], and "vectors", "links", "copies" where
            the layout has them; "sees" [B, S], the last position that each sees, if that is not
            its own.
          cache: of the columns before.
        """
        x, positions = self._embed(columns, cache.memory), columns["positions"]
        if self.config.second is None:
            sees = columns.get("sees")
            run = self.backbone.run(x, positions, None, cache.trunk, tap=self._tap, sees=sees)
            hidden, tapped, kv = run
            if tapped is None:
                return States(hidden, None), GridCache(kv, None, None)
            branch, branch_kv = self.branch(tapped, positions, None, cache.branch)
            return States(hidden, branch), GridCache(kv, branch_kv, None)
        if isinstance(self.second, CrossDecoder):
            hidden, kv = self.second.run(x, positions, None, cache.trunk, None, None)
        else:
            hidden, kv = self.second(x, positions, None, cache.trunk)
        return States(hidden, None), GridCache(kv, None, cache.memory)

    # What is predicted.

    def logits(self, states: States, row: int) -> jax.Array:
        """[B, S, V] of the ids `ids_of(row)`, of a row that the depth transformer does not have."""
        branch = self.config.branch
        hidden = states.branch if branch and row in branch.rows else states.trunk
        if self._by_llm(row):
            return self.backbone.logits(hidden, self.ids_of(row))
        return self.heads[self._name(row)](hidden)

    def ids_of(self, row: int) -> slice:
        """The ids that the row's head has."""
        return slice(self.layout.rows[row].lowest, self.layout.rows[row].classes)

    def before(self, k: int) -> int | None:
        """The row that depth row `k` is told, None for the first where all rows are depth's."""
        return self._before()[k]

    def told(self, row: int, ids: jax.Array) -> jax.Array:
        """What the depth transformer takes of ids [...] of a row: them, or their vectors."""
        if not self.config.depth.shared_tables:
            return ids
        return self.embedding.look_up(row, ids, self._table())

    # Below, parts of these.

    def _name(self, row: int) -> str:
        return f"{row:0{self.digits}}"

    @property
    def _tap(self) -> int | None:
        return self.config.branch.tap if self.config.branch else None

    def _by_llm(self, row: int) -> bool:
        """Whether the text LLM's own head predicts the row."""
        branch = self.config.branch
        shared = self.embedding.numbers[row] == BACKBONE
        elsewhere = self.nar or self.config.second or (branch and row in branch.rows)
        return shared and not elsewhere and row not in self.depth_rows

    def _table(self) -> Embedding | None:
        if self.nar:
            return self.table
        return self.backbone.embedding if self.config.backbone.vocab_size else None

    def _embed(self, columns: Columns, memory: jax.Array | None) -> jax.Array:
        x = self.embedding(columns["tokens"], columns.get("vectors"), self._table())
        return x if memory is None else self.feed(x, memory, columns)

    def _before(self) -> tuple[int | None, ...]:
        rows = (None, *chained(self.layout))
        return rows[self.config.depth_from :][: len(self.depth_rows)]


def seen(prefix: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The last column that each sees where those that a record begins with see each other.

    Args:
      prefix: bool [B, S], what may belong to them; the first that does not ends them.
      segment_ids: int [B, S].

    Returns:
      int [B, S], columns of the row.
    """
    columns = jnp.arange(prefix.shape[1])
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    ends = jnp.where(same & ~prefix[:, None, :], columns, prefix.shape[1]).min(-1)
    return jnp.where(columns < ends, ends - 1, columns)
