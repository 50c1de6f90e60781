"""What a layout makes: rows and columns of ids, and what each cell is worth in the loss."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One level of one stream in the grid.

    Attributes:
      name: "text", or family and level as "taste.0".
      family: the dataset family that fills it.
      level: codebook level within the family, 0 is coarse.
      classes: ids that a head may predict, [0, classes).
      vocab: ids that may stand in the grid; those from `classes` on are `init` and `pad`.
      init: id of the cells before the row's first item.
      pad: id of the cells after its last.
      delay: ticks that an item comes after its own tick.
      reach: ticks after the stream's end in which the row still shows items; those that the delay
        moves further are dropped.
      predicted: False for a row that is only observed: it is never a target.
      weight: loss weight of its targets.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """One arranged record: the model reads column s of `tokens` and predicts that of `targets`.

    Attributes:
      content: int32 [R, S + 1], every cell; column 0 is the initial one (BOS, INIT).
      weights: float32 [R, S], loss weight of `targets`; 0 where nothing is to be predicted.
      clock: int32 [S + 1], the tick (word or frame) of each column of `content`; the initial
        column has -1.
    """

    content: np.ndarray
    weights: np.ndarray
    clock: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """int32 [R, S]: the columns that the model reads."""
        return self.content[:, :-1]

    @property
    def targets(self) -> np.ndarray:
        """int32 [R, S]: the column after each; where its weight is 0 an id may be INIT or PAD."""
        return self.content[:, 1:]

    @property
    def positions(self) -> np.ndarray:
        """int32 [S]: 0, 1, 2..."""
        return np.arange(self.weights.shape[1], dtype=np.int32)


class Restored(NamedTuple):
    """One stream read back from a grid: a `StreamItem` of a dataset without its id.

    Attributes:
      values: int32 [n, levels].
      index: int32 [n], the word of each item where a word has several; else None.
    """

    values: np.ndarray
    index: np.ndarray | None
