"""Word error rate: the normaliser, the alignment, the corpus-level score and its interval."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

PROTOCOL = "wer-en-1"  # change it whenever a score could change

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_ONES += " fifteen sixteen seventeen eighteen nineteen"
_UNITS = {word: value for value, word in enumerate(_ONES.split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
_SPELLINGS = {
    "1st": "first",
    "2nd": "second",
    "3rd": "third",
    "4th": "fourth",
    "5th": "fifth",
    "6th": "sixth",
    "7th": "seventh",
    "8th": "eighth",
    "9th": "ninth",
    "10th": "tenth",
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "okay": "ok",
    "%": " percent ",
    "&": " and ",
    "+": " plus ",
    "@": " at ",
    "#": " pound ",
}
_FILLERS = {"uh", "um", "hmm", "mm", "mhm", "hm"}


def normalize(text: str) -> list[str]:
    """English words as they are compared: case, punctuation and spelling of numbers removed.

    Numbers become numerals and neighbours are joined, so "twenty-five", "25" and "2 5" agree.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"\[[^]]*\]|\([^)]*\)|<[^>]*>", " ", text)
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"[%&+@#]", lambda match: _SPELLINGS[match[0]], text)
    words = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in text).split()
    words = [_SPELLINGS.get(word, word) for word in words if word not in _FILLERS]
    return _join_numerals(words)


def _join_numerals(words: list[str]) -> list[str]:
    out: list[str] = []
    numeral, i = "", 0
    while i < len(words):
        digits, end = _read_number(words, i)
        numeral += digits
        if end == i:
            out += [numeral, words[i]] if numeral else [words[i]]
            numeral, end = "", i + 1
        i = end
    return [*out, numeral] if numeral else out


def _read_number(words: list[str], start: int) -> tuple[str, int]:
    """Digits of the one number that starts at `start`, and where it ends (`start` if none does)."""
    if words[start].isdecimal():
        return words[start], start + 1
    total = part = 0
    room = 1_000_000_000  # what is added next must be smaller: 10 after "twenty", 0 after "five"
    end = i = start
    while i < len(words):
        unit, scale = _UNITS.get(words[i]), _SCALES.get(words[i])
        if unit is not None and unit < room and (unit or i == start):
            part += unit
            room = 10 if unit >= 20 else 0
        elif scale == 100 and 0 < part < 100:
            part, room = part * scale, scale
        elif scale and scale > 100 and part:
            total, part, room = total + part * scale, 0, scale
        elif words[i] == "and" and words[i - 1] in _SCALES and end == i > start:
            i += 1  # "one hundred and five": part of the number only if a unit follows
            continue
        else:
            break
        i += 1
        end = i
    return (str(total + part), end) if end > start else ("", start)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Edits that turn the reference into the hypothesis, and the reference's length in words."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Levenshtein alignment of two word sequences with unit costs."""
    # A cell holds (edits, substitutions, deletions, insertions); one row per reference word.
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, start=1):
        diagonal, row[0] = row[0], (i, 0, i, 0)
        for j, other in enumerate(hypothesis, start=1):
            same = word == other
            up, left = row[j], row[j - 1]
            edits, move = min((diagonal[0] + (not same), 0), (up[0] + 1, 1), (left[0] + 1, 2))
            source = (diagonal, up, left)[move]
            diagonal = row[j]
            row[j] = (
                edits,
                source[1] + (move == 0 and not same),
                source[2] + (move == 1),
                source[3] + (move == 2),
            )
    _, substitutions, deletions, insertions = row[-1]
    return Errors(substitutions, deletions, insertions, len(reference))


@dataclasses.dataclass(frozen=True)
class WordErrorRate:
    """Corpus-level score: all edits over all reference words.

    Attributes:
      wer: the rate (0.05 is 5 %); it exceeds 1 when insertions abound.
      low, high: 95 % bootstrap interval over utterances.
      n: utterances scored. words: reference words in them.
    """

    wer: float
    low: float
    high: float
    n: int
    words: int
    protocol: str = PROTOCOL

    def to_json(self) -> dict[str, float | int | str]:
        return dataclasses.asdict(self)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrorRate:
    """Scores normalised texts pair by pair.

    Raises:
      ValueError: the lists differ in length, or no reference holds a word.
    """
    pairs = zip(references, hypotheses, strict=True)
    counts = [count_errors(normalize(reference), normalize(heard)) for reference, heard in pairs]
    edits = np.array([count.total for count in counts], np.int64)
    words = np.array([count.words for count in counts], np.int64)
    if words.sum() == 0:
        raise ValueError("word error rate of references without words")
    draws = np.random.default_rng(0).integers(0, len(counts), (1000, len(counts)))
    rates = edits[draws].sum(1) / np.maximum(words[draws].sum(1), 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    rate = edits.sum() / words.sum()
    return WordErrorRate(float(rate), float(low), float(high), len(counts), int(words.sum()))
