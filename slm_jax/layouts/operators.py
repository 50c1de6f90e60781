"""The operators that a layout is written in. Each is a frozen value; all of them work on *ticks*.

A tick is one frame, or one word where a `Text` row is present. An expression places items on
ticks: `rows` says what the rows are, `cells` gives for each row and tick the item that stands
there, or BEFORE, or AFTER, and `tail` is the number of ticks after the streams' own. Ticks become
columns in `slm_jax.layouts.layout`: a frame is one column, a word has as many as text ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.grid import Row

BEFORE, AFTER = -1, -2  # the row has not begun; it has ended


@dataclasses.dataclass(frozen=True)
class Text:
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
        ends = {"init": self.bos, "pad": self.eos}
        return (Row("text", self.family, 0, self.vocab, self.vocab, **ends, weight=self.weight),)

    @property
    def tail(self) -> int:
        return 1  # EOS

    def cells(self, ticks: Mapping[str, int]) -> np.ndarray:
        return np.append(np.arange(ticks[self.family]), AFTER)[None]


@dataclasses.dataclass(frozen=True)
class Stream:
    """All levels of a discrete stream as parallel rows, one item a tick.

    Attributes:
      family: dataset family, e.g. "taste".
      vocab: codes per level, coarse first; INIT and PAD get the two ids after them.
      predicted: False for a stream that is only observed (the user's side of a dialogue).
      weight: loss weight of its targets.
    """

    family: str
    vocab: tuple[int, ...]
    predicted: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.vocab or min(self.vocab) < 1:
            raise ValueError("vocab must give a positive size for at least one level")

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(
            Row(
                name=f"{self.family}.{level}",
                family=self.family,
                level=level,
                classes=size,
                vocab=size + 2,
                init=size,
                pad=size + 1,
                predicted=self.predicted,
                weight=self.weight,
            )
            for level, size in enumerate(self.vocab)
        )

    @property
    def tail(self) -> int:
        return 0

    def cells(self, ticks: Mapping[str, int]) -> np.ndarray:
        return np.tile(np.arange(ticks[self.family]), (len(self.vocab), 1))


@dataclasses.dataclass(frozen=True)
class Delay:
    """Moves each row later, by ticks of its own.

    Attributes:
      of: what is delayed.
      by: delay of each row of `of`, in order; one number serves all rows.
      clock: what a tick is: "column" for frames, "word" beside a `Text` row.
      fill: what stands before a row's first item, its "init" or its "pad" id. After the last
        stands "pad".
      end: "extend" adds ticks until every row has ended (Mini-Omni, TASTE); "valid_only" stops
        where the first row has ended (MusicGen's keep_only_valid_steps); "truncate" keeps the
        number of ticks (Moshi). The latter two drop the last items of the rows delayed more.
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
        added = {"extend": max(self.by), "valid_only": min(self.by), "truncate": 0}[self.end]
        return self.of.tail + added

    def cells(self, ticks: Mapping[str, int]) -> np.ndarray:
        inner = self.of.cells(ticks)
        length = inner.shape[1]
        source = np.arange(length + self.tail - self.of.tail)[None] - self.delays[:, None]
        outer = np.take_along_axis(inner, source.clip(0, max(length - 1, 0)), 1) if length else 0
        return np.where(source < 0, BEFORE, np.where(source < length, outer, AFTER))


@dataclasses.dataclass(frozen=True)
class Par:
    """Rows that share columns. A row that ends before another is padded.

    Attributes:
      parts: what stands side by side; a `Text` row goes first.
    """

    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must not be empty")
        if any(text_of(part) is not None for part in self.parts[1:]):
            raise ValueError("parts must have at most one Text row, the first")

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for part in self.parts for row in part.rows)

    @property
    def tail(self) -> int:
        return max(part.tail for part in self.parts)

    def cells(self, ticks: Mapping[str, int]) -> np.ndarray:
        families = {row.family for row in self.rows}
        if len({ticks[family] for family in families}) > 1:
            counts = ", ".join(f"{family} {ticks[family]}" for family in sorted(families))
            raise UserError(
                f"streams that share columns disagree in length: {counts}",
                "make them again from the same words; python -m slm_jax.data.inspect shows both",
            )
        parts = [part.cells(ticks) for part in self.parts]
        length = max(part.shape[1] for part in parts)
        padded = [
            np.pad(part, ((0, 0), (0, length - part.shape[1])), constant_values=AFTER)
            for part in parts
        ]
        return np.concatenate(padded)


Expression: TypeAlias = Text | Stream | Delay | Par


def text_of(expression: Expression) -> Text | None:
    """The `Text` row of an expression, which gives it a word clock."""
    if isinstance(expression, Text):
        return expression
    parts = expression.parts if isinstance(expression, Par) else ()
    return next((found for part in parts if (found := text_of(part))), None)


def delays_of(expression: Expression) -> tuple[Delay, ...]:
    """All `Delay`s in an expression."""
    if isinstance(expression, Delay):
        return (expression, *delays_of(expression.of))
    parts = expression.parts if isinstance(expression, Par) else ()
    return tuple(delay for part in parts for delay in delays_of(part))
