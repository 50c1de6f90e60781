"""Operators with chance in them, drawn from the key of (seed, step, row)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from slm_jax.layouts.cells import View, specials
from slm_jax.layouts.expression import ZERO, Expression, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import Stream
from slm_jax.layouts.program import Builder, State
from slm_jax.layouts.sequences import Seq


@dataclasses.dataclass(frozen=True)
class Bistream(Operator):
    """Text fed between the speech that is generated, or all of it before (CosyVoice 2).

    After `turns[0]` ids of text come `turns[1]` of speech, in whose place `fill` is predicted when
    they are written: more text is to follow. `task` follows the text, the rest of the speech that.
    Source: arXiv:2412.10117 §2.2; `Qwen2LM.prepare_lm_input_target`.

    Attributes:
      text: ids that are read only.
      speech: one level, with EOS, of ids that the text has not.
      turns: of text and speech.
      fill, task: special ids.
      share: of records that come in turns; those with less than turns[1] / turns[0] items of speech
        for an id of text never do.
    """

    text: Stream
    speech: Stream
    turns: tuple[int, int]
    fill: int
    task: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.text.predicted or self.text.eos >= 0 or len(self.text.vocab) != 1:
            raise ValueError("text must be one level, not predicted, without EOS")
        if len(self.speech.vocab) != 1 or self.speech.eos < 0:
            raise ValueError("speech must be one level with EOS")
        if min(self.turns) < 1:
            raise ValueError("turns must be positive")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.text, self.speech)

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = Seq((self.text, self.speech)).rows
        most = max(self.fill, self.task) + 1
        names = (*row.names, (self.fill, "FILL"), (self.task, "TASK"))
        sizes = {"classes": max(row.classes, self.fill + 1), "vocab": max(row.vocab, most)}
        lowest = min(row.lowest, self.fill)
        return (dataclasses.replace(row, lowest=lowest, names=names, **sizes),)

    def columns(self, view: View) -> int:
        return self.text.columns(view) + 1 + self.speech.columns(view)

    def place(self, view: View) -> np.ndarray:
        [text], [speech] = self.text.place(view), self.speech.place(view)
        few, many = self.turns
        turns = len(text) // few
        enough = (len(speech) - 1) * few > many * len(text)
        if not enough or view.chance().random() >= self.share:
            turns = 0
        blocks = []
        for turn in range(turns):
            blocks += [text[turn * few : (turn + 1) * few], speech[turn * many : (turn + 1) * many]]
        rest = [text[turns * few :], specials(1, self.task), speech[turns * many :]]
        line = np.concatenate([*blocks, *rest])
        after = [(few + many) * turn for turn in range(1, turns + 1)]
        line["said"][after], line["weight"][after] = self.fill, self.speech.weights[0]
        return line[None]

    def program(self, row: int, build: Builder, after: int) -> int:
        few, many = self.turns
        rest = build.forced(self.task, self.speech.program(0, build, after))
        text, speech = build.number(self.text), build.number(self.speech)
        if not self.share:
            return self.text.program(0, build, rest)
        said = [build.add(State(exit=rest, stream=text)) for _ in range(few)]
        heard = [build.add(State(stream=speech)) for _ in range(many)]
        chain = [*said, *heard, said[0]]
        for place, (state, then) in enumerate(itertools.pairwise(chain)):
            stream = self.text if place < few else self.speech
            build.states[state].options = [stream.option(0, build, then)]
        return said[0]


class _Around(Operator):
    """Changes some cells of one operator, `of`, and neither rows nor columns."""

    of: Expression

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.of.rows

    @property
    def machines(self) -> tuple[int, ...]:
        return self.of.machines

    def columns(self, view: View) -> int:
        return self.of.columns(view)

    def program(self, row: int, build: Builder, after: int) -> int:
        return self.of.program(row, build, after)


@dataclasses.dataclass(frozen=True)
class Masked(_Around):
    """Now and then a whole part is blank, for a model that must also do without it (Moshi's text).

    Attributes:
      of: what is blanked.
      share: of records.
      blank: id in its place.
    """

    of: Expression
    share: float
    blank: int = ZERO

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        if view.rng is not None and view.rng.random() < self.share:
            return specials(cells.shape, self.blank)
        return cells


@dataclasses.dataclass(frozen=True)
class Thinned(_Around):
    """Finer levels are learned in a share of the columns alone (CSM: 1/16 of the frames).

    Attributes:
      of: rows, the coarsest first, whose weights count everywhere.
      share: of the columns.
    """

    of: Expression
    share: float

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        if view.rng is not None:
            cells["weight"][1:, view.rng.random(cells.shape[1]) >= self.share] = 0
        return cells


@dataclasses.dataclass(frozen=True)
class Nar(Operator):
    """One level at a time, all frames at once, from the coarser ones (VALL-E's NAR stages).

    Its layout has `shift = 0`: a cell is predicted from its own column, where it is hidden.

    Attributes:
      of: levels without EOS; level 0 is always given.
      stage: the level that is predicted; 0 draws one for each record.
    """

    of: Stream
    stage: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.stage < len(self.of.vocab) or len(self.of.vocab) < 2:
            raise ValueError(f"stage must be 0, or a level of 1 to {len(self.of.vocab) - 1}")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of,)

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(
            dataclasses.replace(row, init=ZERO, predicted=n > 0, names=(*row.names, (ZERO, "-")))
            for n, row in enumerate(self.of.rows)
        )

    def columns(self, view: View) -> int:
        return self.of.columns(view)

    def place(self, view: View) -> np.ndarray:
        cells = self.of.place(view)
        stage = self.stage or int(view.chance().integers(1, len(self.of.vocab)))
        cells["weight"][:stage] = 0
        cells["hidden"][stage], cells["id"][stage] = True, ZERO
        cells[stage + 1 :] = specials((), ZERO)
        return cells

    def program(self, row: int, build: Builder, after: int) -> int:
        raise TypeError("a NAR stage predicts all columns at once; nothing is scheduled")
