"""The operators that a layout is written in: streams, rows side by side, delays.

Each is a frozen value. An operator has `rows`; it `place`s the items of a record as cells, row by
row and column by column; it knows how many `columns` that takes; and it compiles each row to a
`program` for the decode scheduler. Where a `Text` row is present, columns are words at first
(*ticks*), and `slm_jax.layouts.layout` gives each word as many columns as it has text ids.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, items, specials
from slm_jax.layouts.grid import Row
from slm_jax.layouts.program import COPIED, Builder, Option, State

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
    def streams(self) -> tuple[Stream, ...]:
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


@dataclasses.dataclass(frozen=True)
class Text(Operator):
    """The text row: one id a column. Its words are the ticks of every row beside it.

    Attributes:
      family: dataset family with ids and their word index, e.g. "text-smollm2".
      vocab: ids of the text LLM.
      bos: id of the initial column.
      eos: id after the last word; it is a tick of its own, and fills the row to the end.
      weight: loss weight of a text target.
    """

    family: str
    vocab: int
    bos: int
    eos: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("bos", "eos"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ValueError(f"{name} must lie in [0, {self.vocab})")

    @property
    def rows(self) -> tuple[Row, ...]:
        ends = {"init": self.bos, "pad": self.eos, "names": ((self.bos, "BOS"), (self.eos, "EOS"))}
        return (Row("text", self.family, 0, self.vocab, self.vocab, **ends, weight=self.weight),)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (Stream(self.family, (self.vocab,), weight=self.weight),)

    @property
    def tail(self) -> int:
        return 1  # EOS

    def columns(self, view: View) -> int:
        return _words(view, self.family) + 1

    def place(self, view: View) -> np.ndarray:
        """A cell a word, which stands for all of its ids, and EOS."""
        words = items(view.number(self.streams[0]), 0, np.arange(_words(view, self.family)), 0.0)
        return np.append(words, specials(1, self.eos, self.weight))[None]

    def program(self, row: int, build: Builder, after: int) -> int:
        raise TypeError("words are decoded by WordScheduler, not by a program")


@dataclasses.dataclass(frozen=True)
class Stream(Operator):
    """Levels of a discrete stream as parallel rows, one item a column.

    Attributes:
      family: dataset family, e.g. "taste".
      vocab: ids per level, coarse first.
      predicted: False for a stream that is only read: the user's side, or a text to be spoken.
      weight: loss weight of its targets.
      level_weights: of each level, in place of that one.
      first: level of the family that is the first here.
      offset: of each level, added to its ids: where streams share a row, each has a range of its
        own. Empty for none.
      init, pad: ids before the first item and after the last, one more than the ids of the level
        and two more where they are negative.
      eos: id that follows the last item in each level and is predicted; negative for none.
      pad_weight: loss weight of `pad`.
      dedup: leave out an item that equals the one before it.
      rate: items a second, for operators that align by time.
    """

    family: str
    vocab: tuple[int, ...]
    predicted: bool = True
    weight: float = 1.0
    level_weights: tuple[float, ...] = ()
    first: int = 0
    offset: tuple[int, ...] = ()
    init: int = -1
    pad: int = -1
    eos: int = -1
    pad_weight: float = 0.0
    dedup: bool = False
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not self.vocab or min(self.vocab) < 1:
            raise ValueError("vocab must give a positive size for at least one level")
        for name in ("offset", "level_weights"):
            if len(getattr(self, name)) not in (0, len(self.vocab)):
                raise ValueError(f"{name} must have a value for each of {len(self.vocab)} levels")

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(first id, id after the last) of each level."""
        offsets = self.offset or (0,) * len(self.vocab)
        return tuple((low, low + size) for low, size in zip(offsets, self.vocab, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        """Of a target of each level."""
        given = self.level_weights or (self.weight,) * len(self.vocab)
        return tuple(weight * self.predicted for weight in given)

    @property
    def rows(self) -> tuple[Row, ...]:
        rows = []
        for level, (_, high) in enumerate(self.ranges):
            init = self.init if self.init >= 0 else high
            pad = self.pad if self.pad >= 0 else high + 1
            ends = ((init, "INIT"), (pad, "PAD"))
            rows.append(
                Row(
                    name=f"{self.family}.{self.first + level}",
                    family=self.family,
                    level=self.first + level,
                    classes=max(high, self.eos + 1, (pad + 1) * (self.pad_weight > 0)),
                    vocab=max(high, init + 1, pad + 1, self.eos + 1),
                    init=init,
                    pad=pad,
                    predicted=self.predicted,
                    weight=self.weights[level],
                    pad_weight=self.pad_weight * self.predicted,
                    names=ends + (((self.eos, "EOS"),) if self.eos >= 0 else ()),
                )
            )
        return tuple(rows)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (self,)

    def kept(self, view: View) -> np.ndarray:
        """Indices of the items that are placed."""
        values = view.values(self.family)
        if not self.dedup or len(values) < 2:
            return np.arange(len(values))
        here = values[:, self.first : self.first + len(self.vocab)]
        return np.flatnonzero(np.append(True, (here[1:] != here[:-1]).any(1)))

    def columns(self, view: View) -> int:
        return len(self.kept(view)) + (self.eos >= 0)

    def place(self, view: View) -> np.ndarray:
        number, kept = view.number(self), self.kept(view)
        levels = [items(number, level, kept, weight) for level, weight in enumerate(self.weights)]
        if self.eos >= 0:
            levels = [
                np.append(level, specials(1, self.eos, weight))
                for level, weight in zip(levels, self.weights, strict=True)
            ]
        return np.stack(levels)

    def option(self, level: int, build: Builder, then: int) -> Option:
        """Any item of a level."""
        return Option(*self.ranges[level], build.number(self), level, then)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.eos >= 0:
            after = build.chosen(self.eos, after)
        state = State(exit=after, stream=build.number(self), level=row, drop=build.drop)
        index = build.add(state)
        state.options = [self.option(row, build, index)]
        return index


@dataclasses.dataclass(frozen=True)
class Token(Operator):
    """One column of one special id.

    Attributes:
      id: the id.
      name: what `show` prints.
      weight: loss weight; where it is 0 the id is forced while decoding, else sampled.
    """

    id: int
    name: str
    weight: float = 0.0

    @property
    def rows(self) -> tuple[Row, ...]:
        vocab = self.id + 1
        classes = vocab * (self.weight > 0)
        names = ((self.id, self.name),)
        return (Row(self.name, "", 0, classes, vocab, self.id, self.id, names=names),)

    def columns(self, view: View) -> int:
        return 1

    def place(self, view: View) -> np.ndarray:
        return specials((1, 1), self.id, self.weight)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.weight:
            return build.chosen(self.id, after)
        return build.forced(self.id, after)


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

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for part in self.parts for row in part.rows)

    @property
    def machines(self) -> tuple[int, ...]:
        found: list[int] = []
        for part in self.parts:
            found += [len(set(found)) + machine for machine in part.machines]
        return tuple(found)

    @property
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
        if self.end != "extend" and any(stream.eos >= 0 for stream in self.of.streams):
            raise ValueError(f"end = {self.end!r} would drop the EOS of delayed rows: extend")
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

    @property
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

    @property
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

    def _level(self, row: Row) -> tuple[Stream, int]:
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

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.of.rows
        rest = {"predicted": False, "weight": 0.0, "pad_weight": 0.0, "classes": 0}
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


Expression = Operator


def text_of(expression: Operator) -> Text | None:
    """The `Text` row of an expression, which gives it a word clock."""
    if isinstance(expression, Text):
        return expression
    return next((text for part in expression.inside if (text := text_of(part))), None)


def delays_of(expression: Operator) -> tuple[Delay, ...]:
    """All `Delay`s in an expression."""
    own = (expression,) if isinstance(expression, Delay) else ()
    return (*own, *(delay for part in expression.inside for delay in delays_of(part)))


def check_lengths(expression: Operator, view: View) -> None:
    """Raises a UserError where streams beside a `Text` row are not as long as it has words."""
    counts = {}
    for stream in expression.streams:
        if stream.family in view.record:
            counts[stream.family] = len(view.values(stream.family))
    text = text_of(expression)
    if text is not None:
        counts[text.family] = _words(view, text.family)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{family} {counts[family]}" for family in sorted(counts))
            raise UserError(
                f"streams that share columns disagree in length: {found}",
                "make them again from the same words; python -m slm_jax.data.inspect shows both",
            )


def _words(view: View, family: str) -> int:
    index = view.record[family].index
    return int(index[-1]) + 1 if index is not None and len(index) else 0
