"""Operators that put rows side by side, move them, or repeat them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.program import COPIED, Builder, State
from slm_jax.layouts.text import text_of


@dataclasses.dataclass(frozen=True)
class Par(Operator):
    """Rows that share columns. A row that ends before another is padded.

    Attributes:
      parts: what stands side by side; a `Text` row goes first. Beside one, all streams must be as
        long as the text has words.
    """

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must not be empty")
        if any(text_of(part) is not None for part in self.parts[1:]):
            raise ValueError("parts must have at most one Text row, the first")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return self.parts

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for part in self.parts for row in part.rows)

    @property
    def machines(self) -> tuple[int, ...]:
        found: list[int] = []
        for part in self.parts:
            found += [len(set(found)) + machine for machine in part.machines]
        return tuple(found)

    @functools.cached_property
    def tail(self) -> int:
        return max(part.tail for part in self.parts)

    def columns(self, view: View) -> int:
        return max(part.columns(view) for part in self.parts)

    def place(self, view: View) -> np.ndarray:
        placed = [part.place(view) for part in self.parts]
        length = max(part.shape[1] for part in placed)
        padded = []
        for part, cells in zip(self.parts, placed, strict=True):
            for row, line in zip(part.rows, cells, strict=True):
                rest = specials(length - len(line), row.pad, row.pad_weight)
                padded.append(np.append(line, rest))
        return np.stack(padded)

    def program(self, row: int, build: Builder, after: int) -> int:
        begin, leads = 0, [self.machines.index(machine) for machine in dict.fromkeys(self.machines)]
        others = [(id(self), lead) for lead in leads if self.machines[lead] != self.machines[row]]
        for part in self.parts:
            if row < begin + len(part.rows):
                break
            begin += len(part.rows)
        state = build.wait(part.rows[row - begin].pad, others, after) if others else after
        with build.part((id(self), row)):
            return part.program(row - begin, build, state)


@dataclasses.dataclass(frozen=True)
class Delay(Operator):
    """Moves each row later, by a number of columns of its own, or of words beside a `Text` row.

    Attributes:
      of: what is delayed.
      by: delay of each row of `of`, in order; one number serves all rows.
      clock: what is counted: "column" for frames, "word" beside a `Text` row.
      fill: what stands before a row's first item, its "init" or its "pad" id. After the last
        stands "pad".
      end: "extend" adds columns until every row has ended (Mini-Omni, TASTE); "valid_only" stops
        where the first row has ended (MusicGen's keep_only_valid_steps); "truncate" keeps the
        number of columns (Moshi). The latter two drop the last items of the rows delayed more.
    """

    of: Expression
    by: tuple[int, ...]
    clock: Literal["column", "word"] = "column"
    fill: Literal["init", "pad"] = "init"
    end: Literal["extend", "truncate", "valid_only"] = "extend"

    def __post_init__(self) -> None:
        if len(self.by) not in (1, len(self.of.rows)):
            raise ValueError(f"by has {len(self.by)} delays for {len(self.of.rows)} rows")
        if min(self.by) < 0:
            raise ValueError("by must not be negative: delay the other rows instead")
        if text_of(self.of) is not None:
            raise ValueError("of must not hold the Text row: its words are the clock")
        if self.end != "extend" and any(stream.end >= 0 for stream in self.of.streams):
            raise ValueError(f"end = {self.end!r} would drop the EOS of delayed rows: extend")
        if len(set(self.delays)) > 1 and any(s.ends_together for s in self.of.streams):
            raise ValueError("of: an EOS that is an id of all levels must stand in one column")
        shared = {}
        for machine, delay in zip(self.of.machines, self.delays, strict=True):
            if shared.setdefault(machine, delay) != delay:
                raise ValueError("by must be one delay for rows that are groups of one sequence")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def machines(self) -> tuple[int, ...]:
        return self.of.machines

    @property
    def delays(self) -> np.ndarray:
        """int [R]."""
        return np.broadcast_to(self.by, len(self.of.rows))

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(
            dataclasses.replace(
                row,
                delay=row.delay + int(delay),
                reach=min(row.reach + int(delay), self.tail),
                init=getattr(row, self.fill),
            )
            for row, delay in zip(self.of.rows, self.delays, strict=True)
        )

    @functools.cached_property
    def tail(self) -> int:
        if self.end != "extend":
            return self.of.tail + (min(self.by) if self.end == "valid_only" else 0)
        rows = zip(self.of.rows, self.delays, strict=True)
        return max(self.of.tail, *(row.reach + int(delay) for row, delay in rows))

    @property
    def _added(self) -> int:
        return self.tail - self.of.tail

    def columns(self, view: View) -> int:
        return self.of.columns(view) + self._added

    def place(self, view: View) -> np.ndarray:
        inner = self.of.place(view)
        length = inner.shape[1] + self._added
        shifted = []
        for row, line, delay in zip(self.of.rows, inner, self.delays, strict=True):
            before = specials(delay, getattr(row, self.fill), self._fill_weight(row))
            after = specials(length, row.pad, row.pad_weight)
            shifted.append(np.concatenate([before, line, after])[:length])
        return np.stack(shifted)

    def _fill_weight(self, row: Row) -> float:
        return row.pad_weight if self.fill == "pad" else 0.0

    def program(self, row: int, build: Builder, after: int) -> int:
        delay = int(self.delays[row])
        with build.delaying(delay, self.tail) as room:
            state = self.of.program(row, build, after)
        fill = getattr(self.of.rows[row], self.fill)
        if room >= delay:
            return build.forced(fill, state, delay * build.rows)
        # Where all items are dropped the row is over before its fill is.
        stream, level = self._level(self.rows[row])
        ends = {"fill": fill, "exit": after, "stream": build.number(stream), "level": level}
        for column in reversed(range(delay)):
            state = build.add(State(then=state, drop=column - room, **ends))
        return state

    def _level(self, row: Row) -> tuple[AnyStream, int]:
        """Where the row's items come from."""
        return next(
            (stream, row.level - stream.first)
            for stream in self.streams
            if stream.family == row.family and 0 <= row.level - stream.first < len(stream.vocab)
        )


@dataclasses.dataclass(frozen=True)
class Copies(Operator):
    """One row in several: what stands in it stands in all of them, or the others are blank.

    UniAudio and Voila repeat text in the rows of the codes; a text row may as well stand in the
    first alone.

    Attributes:
      of: an operator of one row.
      count: rows.
      blank: of the rows after the first; None copies it.
    """

    of: Expression
    count: int
    blank: int | None = None

    def __post_init__(self) -> None:
        if len(self.of.rows) != 1 or self.count < 1:
            raise ValueError("of must have one row, and count be at least 1")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.of.rows
        rest = {"predicted": False, "weight": 0.0, "pad_weight": 0.0, "classes": 0}
        if self.blank is not None:
            rest |= {"family": "", "level": -1, "vocab": self.blank + 1}
            rest |= {"init": self.blank, "pad": self.blank, "names": ((self.blank, "-"),)}
            rest |= {"ranges": (), "width": 0}
        copies = tuple(
            dataclasses.replace(row, name=f"{row.name}'{n}", **rest) for n in range(1, self.count)
        )
        return (row, *copies)

    def columns(self, view: View) -> int:
        return self.of.columns(view)

    def place(self, view: View) -> np.ndarray:
        [line] = self.of.place(view)
        copy = line.copy() if self.blank is None else specials(len(line), self.blank)
        copy["weight"] = 0
        return np.stack([line, *[copy] * (self.count - 1)])

    def program(self, row: int, build: Builder, after: int) -> int:
        key = id(self)
        if row:
            return build.wait(COPIED if self.blank is None else self.blank, [key], after)
        with build.part(key):
            return self.of.program(0, build, after)


def delays_of(expression: Operator) -> tuple[Delay, ...]:
    """All `Delay`s in an expression."""
    own = (expression,) if isinstance(expression, Delay) else ()
    return (*own, *(delay for part in expression.inside for delay in delays_of(part)))
