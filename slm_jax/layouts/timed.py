"""Operators that align by time: text on frames, streams merged, words beside their speech."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import numpy as np

from slm_jax.layouts.cells import View, items, specials
from slm_jax.layouts.expression import ZERO, Operator
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream, Stream, Token
from slm_jax.layouts.program import COPIED, Builder, Option, State
from slm_jax.layouts.rows import Copies
from slm_jax.layouts.sequences import Seq

_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@dataclasses.dataclass(frozen=True)
class Aligned(Operator):
    """Text on the clock of frames: ids from the frame in which their word begins, PAD between.

    Moshi's inner monologue (arXiv:2410.00037 §3.4.4; `Interleaver` of moshi-finetune): EPAD takes
    the place of the PAD before a word. Ids that have no room before the next word are dropped, or
    push it.

    Attributes:
      of: the text, whose words have times.
      beside: the stream whose frames are the clock; it has a `rate`.
      pad, epad: ids, which may lie among those of the text.
      pad_weight: loss weight of both.
      shift: seconds that the text comes later than the words.
      overflow: "drop" or "shift".
    """

    of: Stream
    beside: AnyStream
    pad: int
    epad: int
    pad_weight: float = 1.0
    shift: float = 0.0
    overflow: Literal["drop", "shift"] = "drop"

    def __post_init__(self) -> None:
        has_rate(self.beside, "beside")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.of, self.beside)

    @property
    def rows(self) -> tuple[Row, ...]:
        [row] = self.of.rows
        names = ((row.init, "INIT"), (self.pad, "PAD"), (self.epad, "EPAD"))
        most, least = max(self.pad, self.epad) + 1, min(self.pad, self.epad)
        sizes = {"classes": max(row.classes, most), "vocab": max(row.vocab, most)}
        sizes["lowest"] = min(row.lowest, least)
        return (dataclasses.replace(row, pad=self.pad, names=names, **sizes),)

    def columns(self, view: View) -> int:
        return len(view.values(self.beside.family))

    def place(self, view: View) -> np.ndarray:
        length, number = self.columns(view), view.number(self.of)
        line = specials(length, self.pad, self.pad_weight * self.of.predicted)
        index = np.asarray(view.record[self.of.family].index)
        starts = [word.start + self.shift for word in view.words()]
        frames = (np.array(starts) * self.beside.rate).astype(int)
        written = 0
        for word, frame in enumerate(frames):
            ids = np.flatnonzero(index == word)
            if self.overflow == "shift":
                frame = max(frame, written)
            elif word + 1 < len(frames):
                ids = ids[: max(0, frames[word + 1] - frame)]
            ids = ids[: max(0, length - frame)]
            if len(ids):
                line[frame : frame + len(ids)] = items(number, 0, ids, self.of.weights[0])
                if frame and line["stream"][frame - 1] < 0:
                    line["id"][frame - 1] = self.epad
            written = frame + len(ids)
        return line[None]

    def program(self, row: int, build: Builder, after: int) -> int:
        clock = build.number(self.beside)
        index = build.add(State(exit=after, stream=clock, clock=True, drop=build.drop))
        marks = [Option(id, id + 1, -1, 0, index) for id in (self.pad, self.epad)]
        build.states[index].options = [*marks, self.of.option(0, build, index)]
        return index


@dataclasses.dataclass(frozen=True)
class Merge(Operator):
    """Streams of several rates in one row, by time (Spirit LM Expressive).

    Attributes:
      parts: streams with rates and without EOS, of ids that no other of them has; of items that
        begin together the one whose stream stands first here comes first.
    """

    parts: tuple[Stream, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            has_rate(part, "parts")
            if len(part.vocab) != 1 or part.end >= 0:
                raise ValueError("parts must be streams of one level, without EOS")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return self.parts

    @property
    def rows(self) -> tuple[Row, ...]:
        return Seq(self.parts).rows

    def columns(self, view: View) -> int:
        return sum(part.columns(view) for part in self.parts)

    def timed(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Cells [1, C] and the second [C] in which each begins."""
        placed = [timed(part, view) for part in self.parts]
        cells = np.concatenate([cells for cells, _ in placed], axis=1)
        times = np.concatenate([times for _, times in placed])
        order = np.argsort(times.round(6), kind="stable")
        return cells[:, order], times[order]

    def place(self, view: View) -> np.ndarray:
        return self.timed(view)[0]

    def options(self, build: Builder, then: int) -> list[Option]:
        return [part.option(0, build, then) for part in self.parts]

    def program(self, row: int, build: Builder, after: int) -> int:
        index = build.add(State(exit=after))
        build.states[index].options = self.options(build, index)
        return index


@dataclasses.dataclass(frozen=True)
class Spans(Operator):
    """Spans of words in turns with the speech of the same span, or one of the two.

    Both: a word and then its speech, as the token-by-token form of the lecture; sentences, as
    Baichuan-Audio's. Either: Spirit LM's switch at word boundaries (arXiv:2402.05755 §3.2). A
    `Token` must follow, by which decoding ends. Speech of several levels has its coarse one in the
    row of the text.

    Attributes:
      text: ids without EOS.
      speech: a stream with a rate, or `Merge`; of ids that the text has not.
      words: words of a span; 0 for sentences.
      order: "both", text first, or "either".
      share: of "either", the probability that a span is speech.
      marks: ids before text and before speech; the first span of "both" has none.
      names: of the marks.
      blank: id beside text and marks, in the rows of the finer levels; None copies them (Voila).
    """

    text: Stream
    speech: Stream | Merge
    words: int = 1
    order: Literal["both", "either"] = "both"
    share: float = 0.5
    marks: tuple[int, ...] = ()
    names: tuple[str, ...] = ("TEXT", "SPEECH")
    blank: int | None = ZERO

    def __post_init__(self) -> None:
        if isinstance(self.speech, Stream):
            has_rate(self.speech, "speech")
        if any(stream.end >= 0 for stream in self.streams):
            raise ValueError("text and speech must have no EOS: put a Token after the spans")
        if len(self.marks) not in (0, 2) or (self.order == "either" and not self.marks):
            raise ValueError("marks must be two ids; only with order 'both' may there be none")

    @property
    def inside(self) -> tuple[Operator, ...]:
        return (self.text, self.speech)

    @property
    def _parts(self) -> tuple[Operator, Operator]:
        return Copies(self.text, len(self.speech.rows), self.blank), self.speech

    @property
    def _marks(self) -> list[Operator]:
        tokens = (Token(id, name, 1.0) for id, name in zip(self.marks, self.names, strict=False))
        return [Copies(token, len(self.speech.rows), self.blank) for token in tokens]

    @property
    def rows(self) -> tuple[Row, ...]:
        text, speech = self._parts
        return Seq((text, *self._marks, speech)).rows

    def columns(self, view: View) -> int:
        return self._place(view, longest=True).shape[1]

    def place(self, view: View) -> np.ndarray:
        return self._place(view, longest=False)

    def _place(self, view: View, longest: bool) -> np.ndarray:
        text, _ = (part for part in self._parts)
        written = text.place(view)
        spoken, times = timed(self.speech, view)
        index = np.asarray(view.record[self.text.family].index)
        spans = self._spans(view)
        starts = [view.words()[span[0]].start for span in spans]
        edges = np.searchsorted(times, [0.0, *starts[1:], np.inf])
        blocks, before = [], None
        for number, span in enumerate(spans):
            said = written[:, np.isin(index, span)]
            heard = spoken[:, edges[number] : edges[number + 1]]
            if self.order == "both":
                kinds = (0, 1)
            elif longest:
                kinds = (int(heard.shape[1] > said.shape[1]),)
            else:
                kinds = (int(view.chance().random() < self.share),)
            for kind in kinds:
                if self.marks and (longest or kind != before) and (blocks or len(kinds) == 1):
                    blocks.append(self._marks[kind].place(view))
                blocks.append((said, heard)[kind])
                before = kind
        return np.concatenate(blocks, axis=1) if blocks else written[:, :0]

    def _spans(self, view: View) -> list[range]:
        """Words of each span."""
        words = view.words()
        if self.words:
            cuts = range(self.words, len(words), self.words)
        else:
            cuts = [n for n in range(1, len(words)) if words[n - 1].text.endswith(_SENTENCE_ENDS)]
        edges = [0, *cuts, len(words)]
        return [range(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def program(self, row: int, build: Builder, after: int) -> int:
        if row:
            speech = build.number(self.speech)
            fill = COPIED if self.blank is None else self.blank
            state = State(fill, exit=after, follows=speech, waits=(id(self),), level=row)
            index = build.add(state)
            state.then, state.options = index, [self.speech.option(row, build, index)]
            return index
        with build.part(id(self)):
            text, speech = (build.add(State(exit=after)) for _ in range(2))
            heard = (
                self.speech.options(build, speech)
                if isinstance(self.speech, Merge)
                else [self.speech.option(0, build, speech)]
            )
            said = [self.text.option(0, build, text)]
            marks = [
                Option(id, id + 1, -1, 0, then)
                for id, then in zip(self.marks, (text, speech), strict=False)
            ]
            build.states[text].options = [*said, *(marks[1:] or heard)]
            build.states[speech].options = [*heard, *(marks[:1] or said)]
            return text if self.order == "both" else build.add(State(options=marks, exit=after))


def timed(part: Stream | Merge, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Cells [R, C] and the second [C] in which each begins."""
    if isinstance(part, Merge):
        return part.timed(view)
    return part.place(view), part.kept(view) / part.rate


def has_rate(stream: AnyStream, field: str) -> None:
    if stream.rate <= 0:
        raise ValueError(f"{field} must be a stream with a rate, in items a second")
