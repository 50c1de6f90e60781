"""How much there is in an hour of audio: words, text ids, and what a layout makes of them.

    text ids = hours x 60 x words a minute x text ids a word
    years    = text ids / (words a minute x text ids a word x 525,960 minutes a year)

Both hold of speech without longer silences. One reader says 150 to 160 words a minute, and a text
LLM's tokenizer has about 4/3 ids an English word: 200 ids a minute. LibriSpeech has been measured
at 157 (TASLA) to 180 (TASTE), 9.4 to 10.8 billion ids in a million hours. Figures quoted in
lectures, 6 billion text tokens in a million hours and 285,000 years for 15 trillion, both assume
100, as of a speaker who is heard half of the time; they are one assumption, stated twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.data import registry
from slm_jax.data.schema import WORDS, Record, StreamItem, Utterance, Word
from slm_jax.errors import UserError
from slm_jax.evaluation.compare import facts
from slm_jax.layouts import Layout, Vectors
from slm_jax.layouts.operators import AnyStream

MINUTES_A_YEAR = 525_960  # 365.25 days
EXAMPLES = 64
SAMPLED = 256  # records of a dataset that are measured


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast people speak.

    Attributes:
      words: a minute.
      ids: of the text tokenizer, a word.
    """

    words: float = 150.0
    ids: float = 4 / 3

    def __post_init__(self) -> None:
        if not self.words > 0 or not self.ids > 0:
            raise ValueError(f"words and ids must be above 0, got {self.words} and {self.ids}")

    def text_ids(self, hours: float) -> float:
        """Text ids of so many hours of speech."""
        return hours * 60 * self.words * self.ids

    def years(self, text_ids: float) -> float:
        """Years of speech with so many text ids."""
        return text_ids / (self.words * self.ids * MINUTES_A_YEAR)


class Rates(NamedTuple):
    """What a layout makes of a second of audio.

    Attributes:
      columns: that the backbone reads.
      targets: ids that are predicted.
      speech_targets: those of them that are speech.
      speech_bits: of these, at log2(vocabulary) an id: what the tokenizer spends at most.
    """

    columns: float
    targets: float
    speech_targets: float
    speech_bits: float


def rates(layout: Layout, records: Sequence[Mapping[str, Any]]) -> Rates:
    """The rates over records with their "words", whose durations count."""
    counted = facts.counts(layout, records)
    bits = sum(_bits(one, record) for record in records for one in facts.stages(layout))
    return Rates(
        counted["columns_per_second"],
        counted["targets_per_second"],
        counted["speech_targets_per_second"],
        bits / sum(record[WORDS].duration for record in records),
    )


def pace(records: Sequence[Mapping[str, Any]], otherwise: Pace) -> Pace:
    """How fast records are spoken; ids a word from `otherwise` where they have no text ids."""
    words = sum(len(record[WORDS].words) for record in records)
    seconds = sum(record[WORDS].duration for record in records)
    texts = [family for family in records[0] if family.startswith("text-")]
    ids = (
        sum(len(record[texts[0]].values) for record in records) / words if texts else otherwise.ids
    )
    return Pace(60 * words / seconds, ids)


def measured(layout: Layout, name: str) -> tuple[float, list[Record]]:
    """Hours of a dataset's "train" split, and some of its records, evenly chosen.

    The hours are those of the chosen records times the number of all.

    Args:
      layout: whose streams are read.
      name: as in a mixture.

    Raises:
      UserError: there is no such dataset, it lacks a stream of the layout, or has no audio.
    """
    spec = registry.get(name)
    families = [f for f in layout.families if f in spec.families or f not in layout.optional]
    opened = spec.open(families)
    layout.check(opened.specs, families, f"dataset {name!r}")
    split = opened.split("train", (*dict.fromkeys((WORDS, *families)),))
    chosen = np.linspace(0, len(split) - 1, min(SAMPLED, len(split))).astype(int)
    records = [split[int(index)] for index in chosen]
    seconds = sum(record[WORDS].duration for record in records)
    if not seconds:
        raise UserError(f"dataset {name!r} has no audio", "plan for --hours, or another dataset.")
    return seconds / 3600 * len(split) / len(records), records


def examples(layout: Layout, pace: Pace, seconds: float, rate: float | None) -> list[Record]:
    """Utterances of 1/4 to 7/4 of `seconds`, evenly spoken, with all streams of a layout.

    Args:
      layout: to be planned for.
      pace: of the words.
      seconds: mean length.
      rate: items a second of streams of which the layout does not say it.

    Raises:
      UserError: nothing says how many items a second a stream has.
    """
    spread = (np.arange(EXAMPLES) + 0.5) / EXAMPLES
    lengths = seconds * (0.25 + 1.5 * spread)
    return [_example(layout, pace, float(length), rate) for length in lengths]


def _example(layout: Layout, pace: Pace, seconds: float, rate: float | None) -> Record:
    count = max(1, round(seconds * pace.words / 60))
    edges = np.linspace(0, seconds, count + 1)
    spoken = tuple(Word("word", float(a), float(b)) for a, b in itertools.pairwise(edges))
    text = " ".join(word.text for word in spoken)
    record: Record = {WORDS: Utterance("example", spoken, "en", "", seconds, "made", text)}
    ends = np.floor(np.arange(count + 1) * pace.ids).astype(int)
    per_word = np.maximum(1, np.diff(ends))
    upstream = layout.upstream.streams if layout.upstream else ()
    for stream in (*layout.streams, *upstream):
        if facts.is_text(stream):
            index = np.repeat(np.arange(count), per_word).astype(np.int32)
            values = np.zeros((len(index), 1), np.int32)
            record[stream.family] = StreamItem("example", values, index)
            continue
        items = count if layout.has_text else max(1, round(seconds * _rate(stream, rate)))
        vectors = isinstance(stream, Vectors)
        levels = stream.width if vectors else stream.first + len(stream.vocab)
        before = record.get(stream.family)
        if before is None or before.values.shape[1] < levels:
            alternating = np.arange(items)[:, None] % 2  # no item repeats the one before it
            dtype = np.float32 if vectors else np.int32
            values = np.tile(alternating.astype(dtype), (1, levels))
            record[stream.family] = StreamItem("example", values)
    return record


def _rate(stream: AnyStream, rate: float | None) -> float:
    found = stream.rate or rate
    if not found:
        raise UserError(
            f"the layout does not say how many items a second stream {stream.family!r} has",
            "give --rate=HZ, or --dataset, one that has the stream.",
        )
    return found


def _bits(layout: Layout, record: Mapping[str, Any]) -> float:
    """Bits of the speech targets of a record: log2 of the vocabulary of the stream's level."""
    found = facts.targets(layout, record)
    cells = found.grid.cells[:, layout.shift :][found.speech]
    sizes = [[math.log2(size) for size in stream.vocab] for stream in layout.streams]
    return sum(sizes[cell["stream"]][cell["level"]] for cell in cells)
