"""Autoregressive decoding of a `GridLM` under any layout: one jitted loop, static caches.

Every column is decided row by row: the layout's scheduler says which ids may stand in a cell, or
which one must; the model's heads say how likely each is, knowing the rows above where a depth
transformer has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.decoding.given import Given, given_of, round_up
from slm_jax.decoding.samplers import Sampling, sample
from slm_jax.errors import UserError
from slm_jax.layouts import Grid, Layout
from slm_jax.layouts.automata import Column, State
from slm_jax.layouts.cells import CELL
from slm_jax.models.grid_lm import GridCache, GridLM
from slm_jax.models.grid_losses import States
from slm_jax.nn.tree import Params, merge, pure_params


class _Loop(NamedTuple):
    step: jax.Array
    states: States  # of the last column
    cache: GridCache
    state: State
    last: jax.Array  # int [B], item of the upstream family in the last column
    copies: jax.Array  # int [B], columns in a row that have had it before
    cells: Column  # [C, B, R], what was written
    vectors: jax.Array  # [C, B, L]
    written: jax.Array  # int [B], columns until the sequence ended


class Decoded(NamedTuple):
    """One sequence.

    Attributes:
      grid: for `Layout.restore`.
      vectors: f32 [S, L], what was said in the continuous row of each column; L is 0 without one.
    """

    grid: Grid
    vectors: np.ndarray


class GridEngine:
    """Decodes records of which some streams, or their beginnings, are known.

    Args:
      model: the speech LM.
      layout: the one it was trained with; its columns are predicted one after the other.
      sampling: of all rows but those in `rows`.
      rows: name of a row -> its sampler.
      room: columns at most.
      temperature: of a continuous row.
    """

    def __init__(
        self,
        model: GridLM,
        layout: Layout,
        *,
        sampling: Sampling,
        rows: Mapping[str, Sampling] | None = None,
        room: int = 512,
        temperature: float = 1.0,
    ):
        if layout.shift == 0:
            raise UserError(
                f"layout {layout.name} predicts all columns at once",
                "decode it with slm_jax.decoding.one_shot",
            )
        names = [row.name for row in layout.rows]
        if unknown := sorted(set(rows or {}) - set(names)):
            raise UserError(
                f"layout {layout.name} has no row {unknown[0]!r}", f"rows are {', '.join(names)}"
            )
        self.layout, self.room = layout, round_up(room)
        self._samplings = [(rows or {}).get(name, sampling) for name in names]
        self._temperature = temperature
        self._scheduler = layout.scheduler()
        family = layout.upstream.streams[0].family if layout.upstream else ""
        self._linked = [n for n, s in enumerate(layout.streams) if s.family == family]
        self._graphdef, self._params = pure_params(model)
        self._run = jax.jit(self._decode)

    def generate(
        self,
        records: Sequence[Mapping[str, Any]],
        known: Mapping[str, int] | None = None,
        lengths: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> list[Decoded]:
        """Decodes a batch until every sequence has ended, or there is no more room.

        Args:
          records: family -> item, with all of what is only read and of the upstream text.
          known: family -> items at the beginning of a predicted stream that are taken from the
            records instead of being sampled; -1 for all.
          lengths: family -> items in all, where that is known beforehand.
        """
        layout, known = self.layout, known or {}
        read = {stream.family for stream in layout.streams if not stream.predicted}
        given = {
            family: [np.asarray(r[family].values) for r in records]
            for family in read
            if all(family in r for r in records)
        }
        for family, count in known.items():
            values = [np.asarray(record[family].values) for record in records]
            given[family] = values if count < 0 else [v[:count] for v in values]
        inits = [row.init for row in layout.rows]
        state = self._scheduler.init(len(records), given, lengths, inits)
        columns, vectors, written = jax.device_get(
            self._run(self._params, state, given_of(layout, records), jax.random.key(seed))
        )
        first = np.array(inits, np.int32)[:, None]
        return [
            self._collect(first, columns, vectors, b, n) for b, n in enumerate(written.tolist())
        ]

    def _collect(
        self, first: np.ndarray, columns: Column, vectors: np.ndarray, b: int, n: int
    ) -> Decoded:
        cells = np.zeros((len(first), n), CELL)
        for field in ("stream", "level", "item"):
            cells[field] = getattr(columns, field)[:n, b].T
        content, said = columns.ids[:n, b].T, vectors[:n, b]
        if self.layout.initial:
            empty = np.zeros((len(first), 1), CELL)
            empty["stream"] = -1
            cells = np.concatenate([empty, cells], axis=1)
            content = np.concatenate([first, content], axis=1)
            said = np.concatenate([np.zeros_like(said[:1]), said])
        clock = np.arange(content.shape[1]) - self.layout.initial
        return Decoded(self.layout.collect(content, clock, cells), said)

    def _decode(
        self, params: Params, state: State, given: Given, key: jax.Array
    ) -> tuple[Column, jax.Array, jax.Array]:
        model: GridLM = merge(self._graphdef, params)
        size, rows = state.held.shape
        cache = model.init_cache(size, self.room + 1, given.upstream)
        none = jnp.full(size, -1, jnp.int32)
        width = given.vectors.shape[-1]
        first = jnp.zeros((size, width))
        # Without an initial column nothing is sampled in the first: the layout forces it.
        states, cache, last, copies = self._read(
            model, given, state.held, none, none * 0, first, cache, 0
        )
        if not self.layout.initial:
            cache = model.init_cache(size, self.room + 1, given.upstream)
            last, copies = none, none * 0
        if model.config.prefix:
            cache = self._read_prefix(model, state, cache)
        blank = jnp.zeros((self.room, size, rows), jnp.int32)
        loop = _Loop(
            step=jnp.int32(0),
            states=states,
            cache=cache,
            state=state,
            last=last,
            copies=copies,
            cells=Column(blank, blank > 0, blank, blank, blank),
            vectors=jnp.zeros((self.room, size, width)),
            written=jnp.zeros(size, jnp.int32),
        )

        def unfinished(loop: _Loop) -> jax.Array:
            return (loop.step < self.room) & ~loop.state.done.all()

        def write(loop: _Loop) -> _Loop:
            now = jax.random.fold_in(key, loop.step)
            state, column = self._column(model, loop, now)
            vector = self._vector(model, loop, given, column, now)
            place = loop.step + self.layout.initial
            states, cache, last, copies = self._read(
                model, given, column.ids, loop.last, loop.copies, vector, loop.cache, place, column
            )
            return _Loop(
                step=loop.step + 1,
                states=states,
                cache=cache,
                state=state,
                last=last,
                copies=copies,
                cells=jax.tree.map(lambda all, new: all.at[loop.step].set(new), loop.cells, column),
                vectors=loop.vectors.at[loop.step].set(vector),
                written=loop.written + ~loop.state.done,
            )

        end = jax.lax.while_loop(unfinished, write, loop)
        return end.cells, end.vectors, end.written

    def _read_prefix(self, model: GridLM, state: State, cache: GridCache) -> GridCache:
        """Reads the columns at once that a layout begins with and that see each other."""
        places = jnp.arange(state.given.shape[2])
        _, columns = jax.lax.scan(
            lambda state, _: self._scheduler.next(state, state.held), state, places
        )
        count = state.known[:, :1]
        mine = places < count
        columns = {
            "tokens": jnp.moveaxis(columns.ids, 0, -1),
            "positions": jnp.where(mine, places, self.room + 1),  # beyond the cache: not kept
            "vectors": jnp.zeros((len(count), len(places), 0)),
            "sees": jnp.broadcast_to(count - 1, mine.shape),
        }
        return model.step(columns, cache)[1]

    def _read(
        self,
        model: GridLM,
        given: Given,
        ids: jax.Array,
        last: jax.Array,
        copies: jax.Array,
        vector: jax.Array,
        cache: GridCache,
        place: jax.Array | int,
        column: Column | None = None,
    ) -> tuple[States, GridCache, jax.Array, jax.Array]:
        """Runs the model over one column."""
        size = len(ids)
        item = jnp.full(size, -1, jnp.int32)
        if column is not None and given.places.shape[1]:
            mine = jnp.isin(column.stream, jnp.array(self._linked))
            item = jnp.where(mine, column.item, -1).max(1)
        copies = jnp.where((item >= 0) & (item == last), copies + 1, 0)
        places = jnp.full(size, place, jnp.int32)
        if model.config.prefix and column is not None:  # what was read before is kept as it is
            places = jnp.where(column.stream[:, 0] == 0, self.room + 1, places)
        columns = {
            "tokens": ids[..., None],
            "positions": places[:, None],
            "vectors": vector[:, None],
            "copies": copies[:, None],
        }
        if given.places.shape[1]:
            found = jnp.take_along_axis(given.places, jnp.maximum(item, 0)[:, None], axis=1)
            columns["links"] = jnp.where(item[:, None] >= 0, found, -1)
        states, cache = model.step(columns, cache)
        return states, cache, item, copies

    def _column(self, model: GridLM, loop: _Loop, key: jax.Array) -> tuple[State, Column]:
        """Samples the next column from the top down."""
        automata = self._scheduler.automata
        opened, cells, ids = automata.open(loop.state), [], []
        hidden = loop.states.trunk[:, 0]
        depth = model.depth.init_cache(len(hidden)) if model.depth_rows else None
        for row, sampling in enumerate(self._samplings):
            if row in model.depth_rows:
                k = model.depth_rows.index(row)
                above = model.before(k)
                known = jnp.full(len(hidden), -1, jnp.int32) if above is None else ids[above]
                told = model.told(above or 0, known)
                logits, depth = model.depth.step(k, hidden, told, depth)
            elif row in model.rows:
                logits = model.logits(loop.states, row)[:, 0]
            else:
                logits = None
            candidate = jnp.zeros(len(hidden), jnp.int32)
            if logits is not None:
                ids_here = model.ids_of(row)
                allowed = automata.allowed(opened.state, row, ids_here.stop)[:, ids_here]
                allowed |= ~allowed.any(-1, keepdims=True)  # a cell that is forced
                logits = jnp.where(allowed, logits, -jnp.inf)
                candidate = sample(jax.random.fold_in(key, row), logits, sampling) + ids_here.start
            opened, cell = automata.write(opened, row, candidate)
            cells.append(cell)
            ids.append(cell.ids)
        column = Column(*(jnp.stack(parts, axis=1) for parts in zip(*cells, strict=True)))
        return automata.close(opened, column)

    def _vector(
        self, model: GridLM, loop: _Loop, given: Given, column: Column, key: jax.Array
    ) -> jax.Array:
        """What stands in the continuous row of the column: f32 [B, L], zeros where nothing does."""
        row = self.layout.vector_row
        if row is None:
            return jnp.zeros((len(column.ids), 0))
        number = [stream.family for stream in self.layout.streams].index(row.family)
        item = jnp.where(column.stream == number, column.item, -1).max(1)
        vector = jnp.zeros((len(item), row.width))
        if row.predicted:
            key = jax.random.fold_in(key, len(self._samplings))
            vector = model.continuous.sample(loop.states.trunk[:, 0], key, self._temperature)
        if given.vectors.shape[1]:
            place = jnp.clip(item, 0, given.vectors.shape[1] - 1)
            known = jnp.take_along_axis(given.vectors, place[:, None, None], axis=1)[:, 0]
            vector = jnp.where((item < given.counts)[:, None], known, vector)
        return jnp.where((item >= 0)[:, None], vector, 0)
