"""Cells: what stands where in a grid, before any id is looked up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_jax.errors import UserError

if TYPE_CHECKING:
    from slm_jax.layouts.operators import AnyStream

# One cell. It holds item `item` of level `level` of the layout's stream number `stream`, or, where
# that is SPECIAL, the id `id`. `weight` is what it counts as a target. A model that reads the cell
# sees `id` instead if it is `hidden`, and predicts `said` in its place unless that is negative.
CELL = np.dtype(
    [
        ("stream", np.int16),
        ("level", np.int16),
        ("item", np.int32),
        ("id", np.int32),
        ("said", np.int32),
        ("weight", np.float32),
        ("hidden", np.bool_),
    ]
)
SPECIAL = -1


def specials(shape: int | tuple[int, ...], id: int, weight: float = 0.0) -> np.ndarray:
    """Cells of one special id."""
    cells = np.zeros(shape, CELL)
    cells["stream"], cells["item"], cells["said"] = SPECIAL, -1, -1
    cells["id"], cells["weight"] = id, weight
    return cells


def items(stream: int, level: int, index: np.ndarray, weight: float) -> np.ndarray:
    """Cells of the items `index` [n] of one level of a stream."""
    cells = specials(len(index), 0, weight)
    cells["stream"], cells["level"], cells["item"] = stream, level, index
    return cells


@dataclasses.dataclass(frozen=True)
class View:
    """A record as the operators see it.

    Attributes:
      record: family -> item.
      streams: all streams of the layout; a cell names one by its place here.
      rng: what operators with chance in them draw from; None for none, where nothing is masked.
      name: of the layout, for errors.
    """

    record: Mapping[str, Any]
    streams: tuple[AnyStream, ...]
    rng: np.random.Generator | None = None
    name: str = ""

    def number(self, stream: AnyStream) -> int:
        return self.streams.index(stream)

    def chance(self) -> np.random.Generator:
        """What is drawn from; a fixed one where no key was given."""
        return self._fixed if self.rng is None else self.rng

    @functools.cached_property
    def _fixed(self) -> np.random.Generator:
        return np.random.default_rng(0)

    def values(self, family: str) -> np.ndarray:
        """int [n, levels], or float [n, width].

        Raises:
          UserError: the record lacks the stream.
        """
        if family not in self.record:
            raise UserError(
                f"layout {self.name}: {named(self.record)} has no stream {family}",
                "tokenize the dataset with it, or name another family in the layout",
            )
        return np.asarray(self.record[family].values)

    def words(self) -> Any:
        """The words with their times: `Utterance.words` of the family "words".

        Raises:
          UserError: the record lacks them.
        """
        if "words" not in self.record:
            raise UserError(
                f"layout {self.name}: {named(self.record)} has no words with times",
                'read the family "words" too; this layout aligns by time',
            )
        return self.record["words"].words


def named(record: Mapping[str, Any]) -> str:
    """The record's id for an error message, where it has one."""
    return next(
        (f"record {item.id!r}" for item in record.values() if hasattr(item, "id")), "a record"
    )
