"""What all operators are, and the simplest: streams, text, single tokens.

Each is a frozen value. An operator has `rows`; it `place`s the items of a record as cells, row by
row and column by column; it knows how many `columns` that takes; and it compiles each row to a
`program` for the decode scheduler. Where a `Text` row is present, columns are words at first
(*ticks*), and `slm_jax.layouts.layout` gives each word as many columns as it has text ids.
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, items, specials
from slm_jax.layouts.grid import Row
from slm_jax.layouts.program import Builder, Option, State

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
            ends = ((pad, "PAD"), (init, "INIT"))  # where they are one id, that is INIT
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
        return self.distinct(view.values(self.family))

    def distinct(self, values: np.ndarray) -> np.ndarray:
        """Which of the items [n, levels] of the family are placed, by index."""
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
        return (Row(self.name, "", -1, classes, vocab, self.id, self.id, names=names),)

    def columns(self, view: View) -> int:
        return 1

    def place(self, view: View) -> np.ndarray:
        return specials((1, 1), self.id, self.weight)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.weight:
            return build.chosen(self.id, after)
        return build.forced(self.id, after)


Expression = Operator


def text_of(expression: Operator) -> Text | None:
    """The `Text` row of an expression, which gives it a word clock."""
    if isinstance(expression, Text):
        return expression
    return next((text for part in expression.inside if (text := text_of(part))), None)


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
