"""The simplest operators: streams and single tokens."""

from __future__ import annotations

import abc
import dataclasses
import functools

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, items, named, specials
from slm_jax.layouts.expression import Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.program import Builder, Option, State


class AnyStream(Operator):
    """Levels of a stream, of ids or of vectors, as parallel rows, one item a column.

    Attributes:
      family: dataset family.
      vocab: ids per level, coarse first.
      ranges: (first id, id after the last) of each level, as they stand in the grid.
      weights: of a target of each level.
      first: level of the family that is the first here.
      predicted: False for a stream that is only read.
      optional: whether a record may lack it; then it has no items.
      dedup: whether an item that equals the one before it is left out.
      rate: items a second, or 0.
      end: id after the last item, which is predicted; negative for none. One that is an id of all
        of several levels ends the stream where all have it in a column (CSM), and is an item else.
    """

    family: str
    vocab: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    first: int = 0
    predicted: bool
    optional: bool = False
    dedup: bool = False
    rate: float
    end: int

    @property
    def streams(self) -> tuple[AnyStream, ...]:
        return (self,)

    @property
    def ends_together(self) -> bool:
        """Whether `end` is an id of all of several levels."""
        own = all(low <= self.end < high for low, high in self.ranges)
        return own and len(self.ranges) > 1

    @abc.abstractmethod
    def ids(self, view: View) -> np.ndarray:
        """int [n, levels], what stands in the grid for each item.

        Raises:
          UserError: the record's items do not fit.
        """

    def taken(self, values: np.ndarray) -> np.ndarray:
        """What the scheduler is told of items [n, levels] of the family: int [m, own levels]."""
        own = values[self.distinct(values)]
        return own[:, self.first : self.first + len(self.vocab)]

    def kept(self, view: View) -> np.ndarray:
        """Indices of the items that are placed."""
        if self.optional and self.family not in view.record:
            return np.arange(0)
        return self.distinct(view.values(self.family))

    def distinct(self, values: np.ndarray) -> np.ndarray:
        """Which of the items [n, levels] of the family are placed, by index."""
        return np.arange(len(values))

    def columns(self, view: View) -> int:
        return len(self.kept(view)) + (self.end >= 0)

    def place(self, view: View) -> np.ndarray:
        number, kept = view.number(self), self.kept(view)
        levels = [items(number, level, kept, weight) for level, weight in enumerate(self.weights)]
        if self.end >= 0:
            levels = [
                np.append(level, specials(1, self.end, weight))
                for level, weight in zip(levels, self.weights, strict=True)
            ]
        return np.stack(levels)

    def option(self, level: int, build: Builder, then: int) -> Option:
        """Any item of a level."""
        return Option(*self.ranges[level], build.number(self), level, then)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.ends_together:
            after = build.together(self, self.end, after)
        elif self.end >= 0:
            after = build.chosen(self.end, after)
        state = State(exit=after, stream=build.number(self), level=row, drop=build.drop)
        index = build.add(state)
        state.options = [self.option(row, build, index)]
        return index


@dataclasses.dataclass(frozen=True)
class Stream(AnyStream):
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
      eos: id that follows the last item in each level and is predicted; negative for none. It may
        be an id of a single level, or of all (`AnyStream.end`).
      pad_weight: loss weight of `pad`.
      dedup: leave out an item that equals the one before it.
      rate: items a second, for operators that align by time.
      optional: a record may lack a stream that is only read; its rows are PAD then.
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
    optional: bool = False

    def __post_init__(self) -> None:
        if not self.vocab or min(self.vocab) < 1:
            raise ValueError("vocab must give a positive size for at least one level")
        for name in ("offset", "level_weights"):
            if len(getattr(self, name)) not in (0, len(self.vocab)):
                raise ValueError(f"{name} must have a value for each of {len(self.vocab)} levels")
        inside = {low <= self.eos < high for low, high in self.ranges}
        if len(inside) > 1:
            raise ValueError("eos must be an id of all levels, or of none")
        if self.optional and (self.predicted or self.eos >= 0):
            raise ValueError("optional is for a stream that is only read, and has no EOS")

    @property
    def end(self) -> int:
        return self.eos

    @functools.cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        offsets = self.offset or (0,) * len(self.vocab)
        return tuple((low, low + size) for low, size in zip(offsets, self.vocab, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        given = self.level_weights or (self.weight,) * len(self.vocab)
        return tuple(weight * self.predicted for weight in given)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        rows = []
        for level, (low, high) in enumerate(self.ranges):
            init = self.init if self.init >= 0 else high
            pad = self.pad if self.pad >= 0 else high + 1
            told = [self.eos] * (self.eos >= 0) + [pad] * (self.pad_weight > 0)
            ends = ((pad, "PAD"), (init, "INIT"))  # where they are one id, that is INIT
            rows.append(
                Row(
                    name=f"{self.family}.{self.first + level}",
                    family=self.family,
                    level=self.first + level,
                    classes=max([high, *(id + 1 for id in told)]),
                    lowest=min([low, *told]),
                    vocab=max(high, init + 1, pad + 1, self.eos + 1),
                    init=init,
                    pad=pad,
                    predicted=self.predicted,
                    weight=self.weights[level],
                    pad_weight=self.pad_weight * self.predicted,
                    names=ends + (((self.eos, "EOS"),) if self.eos >= 0 else ()),
                    ranges=(self.ranges[level],),
                )
            )
        return tuple(rows)

    def distinct(self, values: np.ndarray) -> np.ndarray:
        if not self.dedup or len(values) < 2:
            return np.arange(len(values))
        here = values[:, self.first : self.first + len(self.vocab)]
        return np.flatnonzero(np.append(True, (here[1:] != here[:-1]).any(1)))

    def ids(self, view: View) -> np.ndarray:
        values = view.values(self.family)
        last = self.first + len(self.vocab)
        if last > values.shape[1]:
            problem = f"has {values.shape[1]} levels, the layout wants level {last - 1}"
        else:
            values = values[:, self.first : last]
            beyond = ((values < 0) | (values >= np.array(self.vocab))).any(0)
            if not beyond.any():
                return values + np.array([low for low, _ in self.ranges])
            level = int(beyond.argmax())
            problem = f"has ids outside [0, {self.vocab[level]}) in level {self.first + level}"
        raise UserError(
            f"layout {view.name}: stream {self.family!r} of {named(view.record)} {problem}",
            "set the layout's vocab to that of the tokenizer that made the stream",
        )


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

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        vocab = self.id + 1
        classes = vocab * (self.weight > 0)
        names = ((self.id, self.name),)
        said = {"predicted": self.weight > 0, "lowest": self.id}
        return (Row(self.name, "", -1, classes, vocab, self.id, self.id, names=names, **said),)

    def columns(self, view: View) -> int:
        return 1

    def place(self, view: View) -> np.ndarray:
        return specials((1, 1), self.id, self.weight)

    def program(self, row: int, build: Builder, after: int) -> int:
        if self.weight:
            return build.chosen(self.id, after)
        return build.forced(self.id, after)
