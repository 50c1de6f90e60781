"""Operators that put things one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import ZERO, Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.program import Builder
from slm_jax.layouts.rows import Par


class InTurn(Operator):
    """Parts that stand one after the other, or in turns, in the same rows."""

    parts: tuple[Expression, ...]

    @property
    def inside(self) -> tuple[Operator, ...]:
        return self.parts

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(union(rows) for rows in zip(*(p.rows for p in self.parts), strict=True))

    def columns(self, view: View) -> int:
        return sum(part.columns(view) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Seq(InTurn):
    """Parts one after the other, in the same rows.

    Attributes:
      parts: as many rows each.
    """

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        same_rows(self.parts)

    def place(self, view: View) -> np.ndarray:
        return np.concatenate([part.place(view) for part in self.parts], axis=1)

    def program(self, row: int, build: Builder, after: int) -> int:
        for part in reversed(self.parts):
            after = part.program(row, build, after)
        return after


@dataclasses.dataclass(frozen=True)
class Typed(Operator):
    """Parts one after the other, each in rows of its own: a column is of one part's type.

    CSM has text columns and then columns of 32 codes; the rows of the other are empty.

    Attributes:
      parts: what follows each other.
      blank: id in the rows of the others.
    """

    parts: tuple[Expression, ...]
    blank: int = ZERO

    @property
    def inside(self) -> tuple[Operator, ...]:
        return self.parts

    @property
    def rows(self) -> tuple[Row, ...]:
        rows = (row for part in self.parts for row in part.rows)
        return tuple(_with_blank(row, self.blank) for row in rows)

    def columns(self, view: View) -> int:
        return sum(part.columns(view) for part in self.parts)

    def place(self, view: View) -> np.ndarray:
        blocks = []
        for part in self.parts:
            cells = specials((len(self.rows), part.columns(view)), self.blank)
            begin = self._begin(part)
            placed = part.place(view)
            cells = cells[:, : placed.shape[1]]
            cells[begin : begin + len(part.rows)] = placed
            blocks.append(cells)
        return np.concatenate(blocks, axis=1)

    def program(self, row: int, build: Builder, after: int) -> int:
        for number, part in reversed([*enumerate(self.parts)]):
            begin = self._begin(part)
            if begin <= row < begin + len(part.rows):
                with build.part((id(self), number, row == begin)):
                    after = self._even[number].program(row - begin, build, after)
            else:
                after = build.wait(self.blank, [(id(self), number, True)], after)
        return after

    @functools.cached_property
    def _even(self) -> tuple[Operator, ...]:
        """The parts, whose rows end together where some are delayed more."""
        uneven = (len({row.delay for row in part.rows}) > 1 for part in self.parts)
        return tuple(
            Par((part,)) if late else part for part, late in zip(self.parts, uneven, strict=True)
        )

    def _begin(self, part: Operator) -> int:
        number = next(n for n, other in enumerate(self.parts) if other is part)
        return sum(len(before.rows) for before in self.parts[:number])


def same_rows(parts: Sequence[Operator]) -> None:
    """Raises a ValueError where parts that share rows have not as many each."""
    counts = {len(part.rows) for part in parts}
    if len(counts) != 1:
        raise ValueError(f"parts must have as many rows each, not {sorted(counts)}; see Copies")


def plain(streams: Sequence[AnyStream], field: str) -> None:
    """Raises a ValueError, about `field`, where something is no stream without EOS."""
    if any(not isinstance(stream, AnyStream) or stream.end >= 0 for stream in streams):
        raise ValueError(f"{field} must be streams without EOS: put a Token after it")


def union(rows: Sequence[Row]) -> Row:
    """The row that holds what each of several may hold."""
    named = [row for row in rows if row.level >= 0] or list(rows)
    # Only the first one's INIT and the last one's PAD may stand in the row.
    ends = [name for name in rows[-1].names if name[1] == "PAD"]
    ends += [name for name in rows[0].names if name[1] == "INIT"]
    inner = [name for row in rows for name in row.names if name[1] not in ("INIT", "PAD")]
    said = [row for row in rows if row.predicted and row.classes]
    return dataclasses.replace(
        rows[0],
        name="+".join(dict.fromkeys(row.name for row in named)),
        family=named[0].family if len({row.family for row in named}) == 1 else "",
        level=max(row.level for row in rows),
        classes=max((row.classes for row in said), default=0),
        lowest=min((row.lowest for row in said), default=0),
        vocab=max(row.vocab for row in rows),
        predicted=any(row.predicted for row in rows),
        pad=rows[-1].pad,
        pad_weight=rows[-1].pad_weight,
        names=tuple(dict.fromkeys(ends + inner)),
        ranges=tuple(dict.fromkeys(ids for row in rows for ids in row.ranges)),
        width=max(row.width for row in rows),
    )


def _with_blank(row: Row, blank: int) -> Row:
    """The row with `blank` before, between and after its parts."""
    names = (*row.names, (blank, "-"))
    return dataclasses.replace(row, init=blank, pad=blank, pad_weight=0.0, names=names)
