"""The text row, whose words are the clock of the rows beside it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, items, specials
from slm_jax.layouts.expression import Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import Stream
from slm_jax.layouts.program import Builder


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

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        ends = {"init": self.bos, "pad": self.eos, "names": ((self.bos, "BOS"), (self.eos, "EOS"))}
        ranges = ((0, self.vocab),)
        sizes = {"classes": self.vocab, "vocab": self.vocab, "ranges": ranges}
        return (Row("text", self.family, 0, **sizes, **ends, weight=self.weight),)

    @functools.cached_property
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
