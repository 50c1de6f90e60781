"""Pairs of readings of one sentence: stretched, shifted in pitch, or truly read twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from slm_jax.audio import decode
from slm_jax.audio.tempo import shift_pitch, tempo
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, AudioItem, Record, Utterance, Word
from slm_jax.data.split import normalised

TIME_SCALED, PITCH_SHIFTED, RE_SPOKEN = "time-scaled", "pitch-shifted", "re-spoken"
TEMPOS = (0.75, 1.35)  # of the slow and the fast reading: speech of a careful and a hasty speaker
SEMITONES = (-3.0, 3.0)
MAX_SECONDS = 20.0  # of a reading: slowed, it still fits into Whisper's 30 s


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One recording, float32 [n] at 16 kHz, and its words with times in it."""

    audio: np.ndarray
    words: tuple[Word, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """The same words read twice: first slowly then fast, or first low then high.

    Attributes:
      kind: TIME_SCALED, PITCH_SHIFTED or RE_SPOKEN.
      id: of the utterance.
      sentence: normalised text; pairs of one sentence are not independent.
    """

    kind: str
    id: str
    sentence: str
    readings: tuple[Reading, Reading]


def time_scaled(records: Iterable[Record], most: int) -> list[Pair]:
    """Each recording slowed down and quickened, its pitch kept.

    Args:
      records: with words and audio. Those without an inner word, and long ones, are left out.
      most: how many to draw of the others; the same ones each time.
    """
    return [_changed(TIME_SCALED, record, tempo, TEMPOS) for record in _draw(_fit(records), most)]


def pitch_shifted(records: Iterable[Record], most: int) -> list[Pair]:
    """Each recording lowered and raised, its tempo kept; formants move with the pitch.

    Takes the same recordings as `time_scaled`.
    """
    drawn = _draw(_fit(records), most)
    return [_changed(PITCH_SHIFTED, record, shift_pitch, SEMITONES) for record in drawn]


def re_spoken(records: Iterable[Record], most: int) -> list[Pair]:
    """The slowest and the fastest reading of each sentence by one speaker, where there are two.

    Recordings belong together that have one speaker and the same normalised words; those of an
    unknown speaker belong to nobody.

    Args:
      records: with words and audio; as for `time_scaled`.
      most: how many pairs to draw; the same ones each time.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in _fit(records):
        spoken = _utterance(record)
        if spoken.speaker:
            words = tuple(normalised(word.text) for word in spoken.words)
            groups.setdefault((spoken.speaker, words), []).append(record)
    pairs = []
    for group in _draw([group for group in groups.values() if len(group) > 1], most):
        slow, *_, fast = sorted(group, key=_seconds, reverse=True)
        spoken = _utterance(slow)
        readings = _reading(slow), _reading(fast)
        pairs.append(Pair(RE_SPOKEN, spoken.id, normalised(spoken.text), readings))
    return pairs


def inner_words(words: Sequence[str]) -> list[int]:
    """Places of the words that have two neighbours, all three of them with something to say."""
    said = [bool(normalised(word)) for word in words]
    return [i for i in range(1, len(words) - 1) if all(said[i - 1 : i + 2])]


def _fit(records: Iterable[Record]) -> list[Record]:
    spoken = ((record, _utterance(record)) for record in records)
    return [
        record
        for record, one in spoken
        if one.duration <= MAX_SECONDS and inner_words([word.text for word in one.words])
    ]


def _draw(items: list[Any], most: int) -> list[Any]:
    order = np.random.default_rng(0).permutation(len(items))[:most]
    return [items[i] for i in sorted(order)]


def _changed(
    kind: str,
    record: Record,
    change: Callable[[np.ndarray, float], np.ndarray],
    amounts: tuple[float, float],
) -> Pair:
    spoken, original = _utterance(record), _reading(record)
    readings = []
    for amount in amounts:
        audio = change(original.audio, amount)
        scale = len(audio) / len(original.audio)
        words = tuple(
            dataclasses.replace(word, start=word.start * scale, end=word.end * scale)
            for word in original.words
        )
        readings.append(Reading(audio, words))
    return Pair(kind, spoken.id, normalised(spoken.text), (readings[0], readings[1]))


def _reading(record: Record) -> Reading:
    item = record[AUDIO]
    assert isinstance(item, AudioItem)
    return Reading(decode.load(item.flac, AUDIO_RATE), _utterance(record).words)


def _utterance(record: Record) -> Utterance:
    spoken = record[WORDS]
    assert isinstance(spoken, Utterance)
    return spoken


def _seconds(record: Record) -> float:
    words = _utterance(record).words
    return words[-1].end - words[0].start
