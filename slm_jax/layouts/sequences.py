"""Operators that put things one after the other: chains, interleaving, flattening, grouping."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import ZERO, Expression, Operator, Stream
from slm_jax.layouts.program import HELD, Builder, State


class _InTurn(Operator):
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
class Seq(_InTurn):
    """Parts one after the other, in the same rows.

    Attributes:
      parts: as many rows each.
    """

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        _same_rows(self.parts)

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
                    after = part.program(row - begin, build, after)
            else:
                after = build.wait(self.blank, [(id(self), number, True)], after)
        return after

    def _begin(self, part: Operator) -> int:
        number = next(n for n, other in enumerate(self.parts) if other is part)
        return sum(len(before.rows) for before in self.parts[:number])


@dataclasses.dataclass(frozen=True)
class Inter(_InTurn):
    """Streams in turns, so many items of each; who has more goes on alone (GLM-4-Voice 13:26).

    Attributes:
      parts: streams without EOS, of ids that no other of them has; put a `Token` after all.
      turns: items of each part in a turn.
    """

    parts: tuple[Stream, ...]
    turns: tuple[int, ...]

    def __post_init__(self) -> None:
        _same_rows(self.parts)
        _plain(self.parts, "parts")
        if len(self.turns) != len(self.parts) or min(self.turns) < 1:
            raise ValueError("turns must give each part at least one item")

    def place(self, view: View) -> np.ndarray:
        placed = [part.place(view) for part in self.parts]
        rounds = [np.arange(p.shape[1]) // n for p, n in zip(placed, self.turns, strict=True)]
        order = np.argsort(np.concatenate(rounds), kind="stable")
        return np.concatenate(placed, axis=1)[:, order]

    def program(self, row: int, build: Builder, after: int) -> int:
        return self._turns(frozenset(range(len(self.parts))), row, build, after)[0]

    def _turns(self, left: frozenset[int], row: int, build: Builder, after: int) -> dict[int, int]:
        """The states with which each part that is left begins its turn."""
        if len(left) == 1:
            [part] = left
            return {part: self.parts[part].program(row, build, after)}
        order = sorted(left)
        # A part that is over hands the rest of its turn to the next one.
        over = {
            part: self._turns(left - {part}, row, build, after)[order[(n + 1) % len(order)]]
            for n, part in enumerate(order)
        }
        slots = {
            part: [
                build.add(State(exit=over[part], stream=build.number(self.parts[part]), level=row))
                for _ in range(self.turns[part])
            ]
            for part in order
        }
        for n, part in enumerate(order):
            following = slots[order[(n + 1) % len(order)]][0]
            for slot, then in zip(slots[part], [*slots[part][1:], following], strict=True):
                build.states[slot].options = [self.parts[part].option(row, build, then)]
        return {part: slots[part][0] for part in order}


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
        _plain((self.of,), "of")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        if self.into == "own":
            return self.of.rows
        return (dataclasses.replace(_union(self.of.rows), name=self.of.family),)

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

    of: Stream
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
        ended = self.of.eos >= 0
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
        if self.of.eos >= 0:
            after = build.chosen(self.of.eos, after)
        item = build.add(State(exit=after, stream=build.number(self.of), level=row))
        rest = build.forced(HELD if self.blank is None else self.blank, item, self.times - 1)
        build.states[item].options = [self.of.option(row, build, rest)]
        return item


def _same_rows(parts: Sequence[Operator]) -> None:
    counts = {len(part.rows) for part in parts}
    if len(counts) != 1:
        raise ValueError(f"parts must have as many rows each, not {sorted(counts)}; see Copies")


def _plain(streams: Sequence[Stream], field: str) -> None:
    if any(not isinstance(stream, Stream) or stream.eos >= 0 for stream in streams):
        raise ValueError(f"{field} must be streams without EOS: put a Token after it")


def _union(rows: Sequence[Row]) -> Row:
    """The row that holds what each of several may hold."""
    named = [row for row in rows if row.level >= 0] or list(rows)
    # Only the first one's INIT and the last one's PAD may stand in the row.
    ends = [name for name in rows[-1].names if name[1] == "PAD"]
    ends += [name for name in rows[0].names if name[1] == "INIT"]
    inner = [name for row in rows for name in row.names if name[1] not in ("INIT", "PAD")]
    return dataclasses.replace(
        rows[0],
        name="+".join(dict.fromkeys(row.name for row in named)),
        family=named[0].family if len({row.family for row in named}) == 1 else "",
        level=max(row.level for row in rows),
        classes=max(row.classes for row in rows),
        vocab=max(row.vocab for row in rows),
        predicted=any(row.predicted for row in rows),
        pad=rows[-1].pad,
        pad_weight=rows[-1].pad_weight,
        names=tuple(dict.fromkeys(ends + inner)),
    )


def _with_blank(row: Row, blank: int) -> Row:
    """The row with `blank` before, between and after its parts."""
    names = (*row.names, (blank, "-"))
    return dataclasses.replace(row, init=blank, pad=blank, pad_weight=0.0, names=names)
