"""Streams of vectors: continuous features that are read, continuous latents that are predicted."""

from __future__ import annotations

import dataclasses

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, named
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream


@dataclasses.dataclass(frozen=True)
class Vectors(AnyStream):
    """A continuous stream as a row: its vectors are looked up by `Layout.vectors`.

    A cell that holds a vector has id 0. Where the row is predicted, the one after the last has id
    1, the end: one head of two classes says whether there is another vector, a second one which.

    Attributes:
      family: dataset family of kind "continuous".
      width: numbers of a vector.
      rate: items a second, for operators that align by time.
      predicted: False for vectors that are only read, such as those of a speech encoder.
      eos: whether id 1 follows the last vector of a predicted row; not where a `Token` or an id of
        another row says so.
      weight: loss weight of its targets.
    """

    family: str
    width: int
    rate: float = 0.0
    predicted: bool = False
    eos: bool = True
    weight: float = 1.0

    vocab = (1,)
    ranges = ((0, 1),)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be positive")

    @property
    def weights(self) -> tuple[float, ...]:
        return (self.weight * self.predicted,)

    @property
    def end(self) -> int:
        return 1 if self.predicted and self.eos else -1

    @property
    def rows(self) -> tuple[Row, ...]:
        row = Row(
            name=f"{self.family}.0",
            family=self.family,
            level=0,
            classes=2,
            vocab=4,
            init=2,
            pad=3,
            predicted=self.predicted,
            weight=self.weights[0],
            names=((1, "EOS"), (2, "INIT"), (3, "PAD")),
            ranges=self.ranges,
            width=self.width,
        )
        return (row,)

    def values(self, view: View) -> np.ndarray:
        """float32 [n, width].

        Raises:
          UserError: the record's vectors have another width.
        """
        values = np.asarray(view.values(self.family), np.float32)
        if values.shape[1:] != (self.width,):
            raise UserError(
                f"layout {view.name}: stream {self.family!r} of {named(view.record)} has items of "
                f"shape {values.shape[1:]}, the layout says vectors of {self.width} numbers",
                "set Vectors.width to that of the encoder that made the stream",
            )
        return values

    def ids(self, view: View) -> np.ndarray:
        return np.zeros((len(self.values(view)), 1), int)

    def taken(self, values: np.ndarray) -> np.ndarray:
        return np.zeros((len(values), 1), int)
