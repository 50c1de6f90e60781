"""A row that says of every column whether speech goes on, and that no model reads."""

from __future__ import annotations

import dataclasses

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import ZERO, Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.program import Builder, Option, State


@dataclasses.dataclass(frozen=True)
class States(Operator):
    """Rows of a stream, and one more whose targets say where it ends (a state or speak head).

    The label of a column is 1 if the last item of the stream stands in it, in its first level, and
    0 before; nothing is told after. The row is empty for the model: a head without an embedding, as
    Freeze-Omni's chunk states (arXiv:2411.00774 §3.4) and Voila's speak head are.

    Attributes:
      of: one predicted stream without EOS; delays stand inside.
      weight: loss weight of the labels.
    """

    of: Expression
    weight: float = 1.0

    def __post_init__(self) -> None:
        streams = self.of.streams
        if len(streams) != 1 or streams[0].end >= 0 or not streams[0].predicted:
            raise ValueError("of must hold one stream, predicted and without EOS")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def machines(self) -> tuple[int, ...]:
        return (*self.of.machines, len(set(self.of.machines)))

    @property
    def tail(self) -> int:
        return self.of.tail

    @property
    def rows(self) -> tuple[Row, ...]:
        names = ((0, "ON"), (1, "END"), (ZERO, "-"))
        name = f"{self.of.streams[0].family}.state"
        row = Row(name, "", -1, 2, 2, ZERO, ZERO, weight=self.weight, names=names)
        return (*self.of.rows, row)

    def columns(self, view: View) -> int:
        return self.of.columns(view)

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        spoken = np.flatnonzero(((cells["item"] >= 0) & (cells["level"] == 0)).any(0))
        line = specials(cells.shape[1], ZERO)
        if len(spoken):
            line["said"][: spoken[-1]], line["said"][spoken[-1]] = 0, 1
            line["weight"][: spoken[-1] + 1] = self.weight
        return np.concatenate([cells, line[None]])

    def program(self, row: int, build: Builder, after: int) -> int:
        if row < len(self.of.rows):
            return self.of.program(row, build, after)
        stream = build.number(self.of.streams[0])
        index = build.add(State(exit=after, stream=stream, unread=True))
        build.states[index].options = [
            Option(0, 1, -1, 0, index),
            Option(1, 2, -1, 0, after, ends=stream),
        ]
        return index
