"""Operators that put things one after the other: chains, flattening, grouping."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import ZERO, Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream, Stream
from slm_jax.layouts.program import HELD, Builder, State
from slm_jax.layouts.rows import Par


class InTurn(Operator):
    """Parts that stand one after the other, or in turns, in the same rows."""

    parts: tuple[Expression, ...]

    @property
    def inside(self) -> tuple[Operator, ...]:
        return self.parts

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(_union(rows) for rows in zip(*(p.rows for p in self.parts), strict=True))

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


@dataclasses.dataclass(frozen=True)
class Flat(Operator):
    """The levels of a stream one after the other.

    Attributes:
      of: the stream, without EOS; with `rows` "one", of ids that differ between levels if the order
        is by codebook.
      order: "time" for all levels of a frame and then the next frame; "codebook" for a whole level
        and then the next one (coarse first).
      rows: "one" for a single row; "own" leaves each level in its row and the others blank
        (audiocraft's UnrolledPatternProvider and CoarseFirstPattern).
    """

    of: Stream
    order: Literal["time", "codebook"] = "time"
    into: Literal["one", "own"] = "one"

    def __post_init__(self) -> None:
        plain((self.of,), "of")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        if self.into == "own":
            return self.of.rows
        row = _union(self.of.rows)
        # Levels that differ by their place may share ids.
        low, high = min(row.ranges)[0], max(high for _, high in row.ranges)
        return (dataclasses.replace(row, name=self.of.family, ranges=((low, high),)),)

    def columns(self, view: View) -> int:
        return self.of.columns(view) * len(self.of.vocab)

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        if self.into == "one":
            return cells.reshape(1, -1, order="F" if self.order == "time" else "C")
        levels, frames = cells.shape
        grid = np.stack([specials((levels, frames), row.init) for row in self.of.rows])
        grid[np.arange(levels), np.arange(levels)] = cells
        return (
            grid.reshape(levels, -1, order="C")
            if self.order == "codebook"
            else (grid.swapaxes(1, 2).reshape(levels, -1))
        )

    def program(self, row: int, build: Builder, after: int) -> int:
        levels, number = len(self.of.vocab), build.number(self.of)
        if self.order == "codebook":
            if self.into == "one":
                for level in reversed(range(levels)):
                    after = self.of.program(level, build, after)
                return after
            blank = self.of.rows[row].init
            for level in reversed(range(levels)):
                if level == row:
                    with build.part((id(self), level)):
                        after = self.of.program(level, build, after)
                else:
                    after = build.wait(blank, [(id(self), level)], after)
            return after
        if self.into == "one":
            first = build.add(State(exit=after, stream=number, level=0))
            then = first
            for level in reversed(range(1, levels)):
                option = self.of.option(level, build, then)
                then = build.add(State(options=[option]))
            build.states[first].options = [self.of.option(0, build, then)]
            return first
        blank, ends = self.of.rows[row].init, {"exit": after, "stream": number, "level": row}
        item = lead = build.add(State(**ends))
        for _ in range(row):
            lead = build.add(State(fill=blank, then=lead, **ends))
        rest = build.forced(blank, lead, levels - 1 - row)
        build.states[item].options = [self.of.option(row, build, rest)]
        return lead


@dataclasses.dataclass(frozen=True)
class Group(Operator):
    """One sequence in `size` rows, so that a column holds `size` items of it (SLAM-Omni).

    Attributes:
      of: an operator of one row.
      size: rows.
    """

    of: Expression
    size: int

    def __post_init__(self) -> None:
        if len(self.of.rows) != 1 or self.size < 1:
            raise ValueError("of must have one row, and size be at least 1")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.of.rows
        return tuple(dataclasses.replace(row, name=f"{row.name}/{n}") for n in range(self.size))

    @property
    def machines(self) -> tuple[int, ...]:
        return (0,) * self.size

    def columns(self, view: View) -> int:
        return -(-self.of.columns(view) // self.size)

    def place(self, view: View) -> np.ndarray:
        [line], [row] = self.of.place(view), self.of.rows
        rest = specials(-len(line) % self.size, row.pad, row.pad_weight)
        return np.append(line, rest).reshape(-1, self.size).T

    def program(self, row: int, build: Builder, after: int) -> int:
        return self.of.program(0, build, after)


@dataclasses.dataclass(frozen=True)
class Stretch(Operator):
    """Every item `times` columns long: held, or followed by blanks (SLAM-Omni's text upsampling).

    Attributes:
      of: a stream; its EOS is not stretched.
      times: columns of an item.
      blank: id of the columns after the first; None repeats the item there.
    """

    of: AnyStream
    times: int
    blank: int | None = None

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError("times must be at least 1")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        if self.blank is None:
            return self.of.rows
        names, most = ((self.blank, "ε"),), self.blank + 1
        return tuple(
            dataclasses.replace(row, vocab=max(row.vocab, most), names=(*row.names, *names))
            for row in self.of.rows
        )

    def columns(self, view: View) -> int:
        ended = self.of.end >= 0
        return (self.of.columns(view) - ended) * self.times + ended

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        count = len(self.of.kept(view))
        held = np.repeat(cells[:, :count], self.times, axis=1)
        later = np.arange(held.shape[1]) % self.times > 0
        if self.blank is not None:
            held[:, later] = specials((), self.blank)
        held["weight"][:, later] = 0
        return np.concatenate([held, cells[:, count:]], axis=1)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.of.end >= 0:
            after = build.chosen(self.of.end, after)
        item = build.add(State(exit=after, stream=build.number(self.of), level=row))
        rest = build.forced(HELD if self.blank is None else self.blank, item, self.times - 1)
        build.states[item].options = [self.of.option(row, build, rest)]
        return item


def same_rows(parts: Sequence[Operator]) -> None:
    """Raises a ValueError where parts that share rows have not as many each."""
    counts = {len(part.rows) for part in parts}
    if len(counts) != 1:
        raise ValueError(f"parts must have as many rows each, not {sorted(counts)}; see Copies")


def plain(streams: Sequence[AnyStream], field: str) -> None:
    """Raises a ValueError, about `field`, where something is no stream without EOS."""
    if any(not isinstance(stream, AnyStream) or stream.end >= 0 for stream in streams):
        raise ValueError(f"{field} must be streams without EOS: put a Token after it")


def _union(rows: Sequence[Row]) -> Row:
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
