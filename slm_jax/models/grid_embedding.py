"""What goes into a trunk: the rows of a grid's columns as one vector each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.layouts import Row
from slm_jax.nn.layers import NORMAL_002, Embedding, Linear

SKIPPED = -1  # in place of a table: the row is not read
BACKBONE = 0  # the table of the text LLM


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """How the rows of a column become one vector.

    Attributes:
      combine: "sum" (Moshi, CSM, MusicGen, Baichuan-Audio), "mean" over all rows (Mini-Omni,
        SLAM-Omni, Voila), "concat" of tables of D / R (UniAudio), or "gated": the first row and
        the sum of the others, weighed by a gate that sees both (LLaMA-Omni 2).
      tables: for each row the number of its table, 0 for the text LLM's, -1 for a row that is not
        read; rows of one number share a table. Empty: one each, the first row the LLM's.
      scale: of the result (Kimi-Audio: the root of 2).
      vectors: what an adapter makes of a continuous row is added to its column ("add", Kimi-Audio),
        or takes its place ("replace", Mini-Omni, SLAM-Omni).
    """

    combine: Literal["sum", "mean", "concat", "gated"] = "sum"
    tables: tuple[int, ...] = ()
    scale: float = 1.0
    vectors: Literal["add", "replace"] = "add"

    def of(self, rows: int) -> tuple[int, ...]:
        """The table of each row.

        Raises:
          ValueError: `tables` speaks of another number of rows.
        """
        tables = self.tables or tuple(range(rows))
        if len(tables) != rows:
            raise ValueError(f"tables names {len(tables)} rows, the layout has {rows}")
        if self.combine == "concat" and min(tables) <= BACKBONE:
            raise ValueError("tables must be 1 or more with concat: all are D / R wide")
        return tables


class Gate(nnx.Module):
    """g a + (1 - g) b, with g = sigmoid(W [a; b]) for each dimension.

    LLaMA-Omni 2 (arXiv:2505.02625 §2.2, "gate fusion") mixes states with embedded text so.
    """

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.gate = Linear(2 * width, width, bias=True, rngs=rngs, axes=(None, "embed"))

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Two [..., D] -> [..., D]."""
        share = jax.nn.sigmoid(self.gate(jnp.concatenate([a, b], axis=-1)))
        return share * a + (1 - share) * b


class Adapter(nnx.Module):
    """Continuous vectors to the width of a trunk: norm-free, two layers and a GELU.

    As the adapters over Whisper of Mini-Omni and Kimi-Audio.
    """

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.inner = Linear(inputs, width, bias=True, rngs=rngs, axes=(None, "embed"))
        self.outer = Linear(width, width, bias=True, rngs=rngs, axes=(None, "embed"))

    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[B, S, L] -> [B, S, D]."""
        return self.outer(jax.nn.gelu(self.inner(vectors)))


class GridEmbedding(nnx.Module):
    """Tables of all rows that do not share the text LLM's, and what brings rows together.

    Args:
      config: see there.
      rows: of the layout.
      width: of the result, D.
      vectors: width of the layout's continuous row; 0 for none.
    """

    def __init__(
        self,
        config: EmbeddingConfig,
        rows: Sequence[Row],
        width: int,
        vectors: int,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.numbers = config.of(len(rows))
        own = sorted({number for number in self.numbers if number > BACKBONE})
        self.places = tuple(own.index(n) if n > BACKBONE else -1 for n in self.numbers)
        cut = len(rows) if config.combine == "concat" else 1
        sizes = [
            max(row.vocab for row, n in zip(rows, self.numbers, strict=True) if n == number)
            for number in own
        ]
        axes = ("codes", "embed")
        self.tables = nnx.List(
            Embedding(size, width // cut, rngs=rngs, axes=axes, init=NORMAL_002) for size in sizes
        )
        self.gate = Gate(width, rngs) if config.combine == "gated" else None
        self.adapter = Adapter(vectors, width, rngs) if vectors else None

    def look_up(self, row: int, ids: jax.Array, backbone: Embedding | None) -> jax.Array:
        """int [...] -> [..., D] from the table of a row; an empty cell (-1) is zeros."""
        shared = self.numbers[row] == BACKBONE
        table = backbone if shared else self.tables[self.places[row]]
        return table(jnp.maximum(ids, 0)) * (ids >= 0)[..., None]

    def __call__(
        self, tokens: jax.Array, vectors: jax.Array | None, backbone: Embedding | None
    ) -> jax.Array:
        """One vector a column.

        Args:
          tokens: int [B, R, S].
          vectors: [B, S, L] of the continuous row, zeros where it has none.
          backbone: the text LLM's table.

        Returns:
          [B, S, D].
        """
        read = [row for row, number in enumerate(self.numbers) if number != SKIPPED]
        found = [self.look_up(row, tokens[:, row], backbone) for row in read]
        if self.config.combine == "concat":
            x = jnp.concatenate(found, axis=-1)
        elif self.gate is not None:
            x = self.gate(found[0], sum(found[2:], found[1]))
        else:
            x = sum(found[1:], found[0])
            x = x / len(found) if self.config.combine == "mean" else x
        if self.adapter is not None:
            here = jnp.any(vectors != 0, axis=-1, keepdims=True)
            made = self.adapter(vectors) * here
            x = x + made if self.config.vectors == "add" else jnp.where(here, made, x)
        return x * self.config.scale
