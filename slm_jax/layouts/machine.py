"""Text that the model asks for, word by word, while it speaks."""

from __future__ import annotations

import dataclasses

import numpy as np

from slm_jax.layouts.cells import View, items, specials
from slm_jax.layouts.expression import Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream, Stream
from slm_jax.layouts.program import Builder, Option, State
from slm_jax.layouts.timed import has_rate


@dataclasses.dataclass(frozen=True)
class Machine(Operator):
    """Text on the clock of frames as a state machine: the model says when, the host says what.

    The model predicts NEW_WORD in the frame before a word begins and PAD where it does not ask for
    one; the ids of the word then stand in the next frames, are read and weigh nothing (Kyutai TTS,
    arXiv:2509.08753; `StateMachine` of moshi's `models/tts.py`). A word that would begin before the
    last one's ids are through comes right after them; ids beyond the last frame are dropped.

    While decoding, the host passes the ids of the word that was asked for as the row's candidates.

    Attributes:
      of: the text, whose words have times; `Stream.weight = 0` as its ids are given.
      beside: the stream whose frames are the clock; it has a `rate`.
      new_word, pad: ids, which may lie among those of the text.
      weight: loss weight of both.
    """

    of: Stream
    beside: AnyStream
    new_word: int
    pad: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        has_rate(self.beside, "beside")
        if len(self.of.vocab) != 1 or self.of.end >= 0 or any(self.of.weights):
            raise ValueError("of must be one level without EOS, of weight 0")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of, self.beside)

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.of.rows
        names = ((row.init, "INIT"), (self.pad, "PAD"), (self.new_word, "WORD"))
        most = max(self.new_word, self.pad) + 1
        vocab = max(row.vocab, most)
        sizes = {"classes": most, "vocab": vocab, "weight": self.weight}
        sizes["lowest"] = min(self.new_word, self.pad)
        return (dataclasses.replace(row, pad=self.pad, names=names, **sizes),)

    def columns(self, view: View) -> int:
        return len(self.beside.kept(view))

    def place(self, view: View) -> np.ndarray:
        length, number = self.columns(view), view.number(self.of)
        line = specials(length, self.pad, self.weight)
        index = np.asarray(view.record[self.of.family].index)
        written = 0
        for word, time in enumerate(view.words()):
            ids = np.flatnonzero(index == word)
            asked = max(written, int(time.start * self.beside.rate) - 1)
            ids = ids[: max(0, length - asked - 1)]
            if len(ids):
                line["id"][asked] = self.new_word
                written = asked + 1 + len(ids)
                line[asked + 1 : written] = items(number, 0, ids, 0.0)
        return line[None]

    def program(self, row: int, build: Builder, after: int) -> int:
        clock = {"exit": after, "stream": build.number(self.beside), "clock": True}
        idle, asked = (build.add(State(drop=build.drop, **clock)) for _ in range(2))
        word = build.add(State(drop=build.drop, **clock))
        marks = [
            Option(self.pad, self.pad + 1, -1, 0, idle),
            Option(self.new_word, self.new_word + 1, -1, 0, asked),
        ]
        given = self.of.option(0, build, word)
        build.states[idle].options = marks
        build.states[asked].options = [given]
        build.states[word].options = [*marks, given]
        return idle
