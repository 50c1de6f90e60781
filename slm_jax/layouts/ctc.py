"""Units that no column holds: as many as there are, told by all columns together (CTC)."""

from __future__ import annotations

import dataclasses

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, named, specials
from slm_jax.layouts.expression import ZERO, Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import Stream
from slm_jax.layouts.program import Builder


@dataclasses.dataclass(frozen=True)
class Ctc(Operator):
    """Columns that are read, beside a row of units that they predict in order, with blanks between.

    The row is empty for the model. Its targets are packed from the first column on, weigh 1 there
    and 0 after, and are no targets of the columns above them: a CTC loss over all columns reads
    them as one sequence. The blank is id `units.vocab[0]`, one more than the row's classes. The
    layout has `shift = 0` and does not pack (`Layout.packs`). LLaMA-Omni (arXiv:2409.06666 §2.4;
    `SpeechGeneratorCTC`) stretches the text and predicts deduplicated units.

    Attributes:
      of: one row or more that are only read.
      units: one level without EOS and without offset.
    """

    of: Expression
    units: Stream

    def __post_init__(self) -> None:
        if any(stream.predicted for stream in self.of.streams):
            raise ValueError("of must only be read: CTC predicts the units alone")
        if len(self.units.vocab) != 1 or self.units.end >= 0 or self.units.offset:
            raise ValueError("units must be one level, without EOS and offset")
        if not self.units.predicted:
            raise ValueError("units must be predicted")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of, self.units)

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.units.rows
        row = dataclasses.replace(row, init=ZERO, pad=ZERO, names=((ZERO, "-"),))
        return (*self.of.rows, row)

    def columns(self, view: View) -> int:
        """Of `of`.

        Raises:
          UserError: they are too few for the units and a blank between equal neighbours.
        """
        columns, units = self.of.columns(view), self.units.kept(view)
        ids = view.values(self.units.family)[units, self.units.first]
        equal = int((ids[1:] == ids[:-1]).sum())
        if columns < len(units) + equal:
            raise UserError(
                f"layout {view.name}: {named(view.record)} has {columns} columns for "
                f"{len(units)} items of {self.units.family!r} and {equal} blanks between equals",
                "raise Stretch.times, or set Stream.dedup for the units",
            )
        return columns

    def place(self, view: View) -> np.ndarray:
        length, [line] = self.columns(view), self.units.place(view)
        line["hidden"], line["id"] = True, ZERO
        line = np.append(line, specials(length - len(line), ZERO))
        return np.concatenate([self.of.place(view), line[None]])

    def program(self, row: int, build: Builder, after: int) -> int:
        raise TypeError("CTC predicts all columns at once; nothing is scheduled")
