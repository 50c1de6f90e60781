"""What all operators of an expression are.

Each is a frozen value. An operator has `rows`; it `place`s the items of a record as cells, row by
row and column by column; it knows how many `columns` that takes; and it compiles each row to a
`program` for the decode scheduler. Where a `Text` row is present, columns are words at first
(*ticks*), and `slm_jax.layouts.layout` gives each word as many columns as it has text ids.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import numpy as np

from slm_jax.layouts.cells import View
from slm_jax.layouts.grid import Row
from slm_jax.layouts.program import Builder

if TYPE_CHECKING:
    from slm_jax.layouts.operators import AnyStream

ZERO = -1  # the id of a cell that is empty: it is embedded as zeros


class Operator(abc.ABC):
    """What all operators have."""

    @property
    def inside(self) -> tuple[Operator, ...]:
        """The operators that this one is made of, in order."""
        return ()

    @property
    @abc.abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """Top to bottom."""

    @property
    def streams(self) -> tuple[AnyStream, ...]:
        """All streams inside, each once."""
        found = (stream for part in self.inside for stream in part.streams)
        return tuple(dict.fromkeys(found))

    @property
    def machines(self) -> tuple[int, ...]:
        """The automaton of each row; rows of one share its state, from the top down."""
        return tuple(range(len(self.rows)))

    @property
    def tail(self) -> int:
        """Columns after the streams' own."""
        return 0

    @abc.abstractmethod
    def columns(self, view: View) -> int:
        """Columns of `place`, and the most of them where chance decides."""

    @abc.abstractmethod
    def place(self, view: View) -> np.ndarray:
        """`CELL` [R, C]."""

    @abc.abstractmethod
    def program(self, row: int, build: Builder, after: int) -> int:
        """Compiles a row (the first of those that share its automaton).

        Args:
          row: of this operator.
          build: collects the states.
          after: the state that comes after.

        Returns:
          The state that it begins with.
        """


Expression = Operator
