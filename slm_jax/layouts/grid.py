"""What a layout makes: rows and columns of ids, and what each cell is worth in the loss."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the grid: a level of a stream, or all that stands in turns in it.

    Attributes:
      name: "text", or family and level as "taste.0".
      family: the dataset family that fills it; "" where several do.
      level: codebook level within the family, 0 is coarse; -1 where the row has no items.
      classes: ids that a head may predict, [lowest, classes).
      lowest: the least of these; what is only read comes before in a shared row.
      vocab: ids that may stand in the grid, [0, vocab); -1 stands for an empty cell.
      init: id of the cells before the row's first item.
      pad: id of the cells after its last.
      delay: ticks that an item comes after its own tick.
      reach: ticks after the stream's end in which the row still shows items; those that the delay
        moves further are dropped.
      predicted: False for a row that is only observed: it is never a target.
      weight: loss weight of its targets.
      pad_weight: loss weight of `pad`.
      names: what special ids are called.
      ranges: [first, after the last) of the ids of each stream whose items stand in it.
      width: of the vectors that stand in it; 0 for a row of ids (`Vectors`).
    """

    name: str
    family: str
    level: int
    classes: int
    vocab: int
    init: int
    pad: int
    delay: int = 0
    reach: int = 0
    predicted: bool = True
    weight: float = 1.0
    pad_weight: float = 0.0
    names: tuple[tuple[int, str], ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    width: int = 0
    lowest: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """One arranged record: the model reads column s of `tokens` and predicts that of `targets`.

    Attributes:
      content: int32 [R, C], every cell as the model reads it.
      targets: int32 [R, S], what is to be predicted from column s: as a rule the next one, and
        S = C - 1; that of the column itself, and S = C, under a layout with `shift = 0`.
      weights: float32 [R, S], loss weight of `targets`; 0 where nothing is to be predicted.
      clock: int32 [C], the tick (word or frame) of each column of `content`; an initial column has
        -1.
      cells: `CELL` [R, C], what stands where.
    """

    content: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    clock: np.ndarray
    cells: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """int32 [R, S]: the columns that the model reads."""
        return self.content[:, : self.targets.shape[1]]


class Restored(NamedTuple):
    """One stream read back from a grid: a `StreamItem` of a dataset without its id.

    Attributes:
      values: int32 [n, levels]; [n, 0] for vectors, which `kept` finds in the record.
      index: int32 [n], the word of each item where a word has several; else None.
      kept: int [n], which items of the stream these are.
    """

    values: np.ndarray
    index: np.ndarray | None
    kept: np.ndarray
