"""Operators that give items other cells: flattening, grouping, stretching."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream, Stream
from slm_jax.layouts.program import HELD, Builder, State
from slm_jax.layouts.sequences import plain, union


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
        row = union(self.of.rows)
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
        if self.times < 1 or self.of.ends_together:
            raise ValueError("times must be at least 1, and EOS no id of several levels")

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
