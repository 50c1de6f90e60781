"""What swapped words show: does their prosody follow their codes, and only theirs?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax.evaluation.readings import PITCH_SHIFTED, RE_SPOKEN, TIME_SCALED
from slm_jax.evaluation.regression import fit_line, fit_mean

DURATION, OWN, PITCH = "duration", "own", "pitch"
MEASURES = {
    TIME_SCALED: (DURATION, OWN),
    PITCH_SHIFTED: (PITCH,),
    RE_SPOKEN: (DURATION, OWN, PITCH),
}
LIMITS = {DURATION: 0.05, OWN: 0.05, PITCH: 1.0}  # of a neighbour's change: s, s, semitones


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A word beside the swapped one: unchanged, judged again, and beside the swapped word."""

    unchanged: float
    again: float
    swapped: float


@dataclasses.dataclass(frozen=True)
class Values:
    """One measure of one swap, in seconds or hertz; NaN where the judge found none.

    Attributes:
      a, b: of the word in the two recordings.
      unchanged, swapped: of the word in A as decoded, with its own codes and with B's.
      whole: of the word in B as decoded, where every code and the speaker vector are B's.
      neighbours: the word before and the word after.
    """

    a: float
    b: float
    unchanged: float
    swapped: float
    whole: float
    neighbours: tuple[Neighbour, Neighbour]


@dataclasses.dataclass(frozen=True)
class Swap:
    """One word of reading A spoken with reading B's codes.

    Attributes:
      kind, id, sentence: of the pair.
      first: whether A is the pair's first reading, the slow or low one.
      place: of the word.
      word: as written.
      recoded: whether the two readings' codes of the word differ at all.
      measures: DURATION and PITCH as judged; OWN, durations as the decoder laid them out (those of
        the recordings as judged).
    """

    kind: str
    id: str
    sentence: str
    first: bool
    place: int
    word: str
    recoded: bool
    measures: Mapping[str, Values]


def score(kind: str, swaps: Sequence[Swap]) -> dict[str, Any]:
    """The figures of the swaps of one kind of pair.

    Returns:
      {"kind", "sentences", "swaps", "recoded": share of swaps whose codes differ, "measures":
      {name: {"failed", "absolute", "relative", "whole", "neighbours"}}}. `absolute` regresses the
      swapped word on B's word, `relative` the logarithm of swapped over unchanged on that of B over
      A, and `whole` that of B decoded over A decoded: as much as the tokenizer moves at all. A swap
      without one of its figures is failed. Estimates are (value, low, high).
    """
    return {
        "kind": kind,
        "sentences": len({swap.sentence for swap in swaps}),
        "swaps": len(swaps),
        "recoded": float(np.mean([swap.recoded for swap in swaps])) if swaps else None,
        "measures": {measure: _score(swaps, measure) for measure in MEASURES[kind]},
    }


def log_changes(swaps: Sequence[Swap], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Natural logarithms of B over A and of swapped over unchanged, [n]; NaN for the failed."""
    a, b, unchanged, swapped = (
        _column(swaps, measure, name) for name in ("a", "b", "unchanged", "swapped")
    )
    wanted, got = np.log(b / a), np.log(swapped / unchanged)
    failed = ~np.isfinite(wanted + got)
    return np.where(failed, np.nan, wanted), np.where(failed, np.nan, got)


def _column(swaps: Sequence[Swap], measure: str, name: str) -> np.ndarray:
    return np.array([getattr(swap.measures[measure], name) for swap in swaps], np.float64)


def _score(swaps: Sequence[Swap], measure: str) -> dict[str, Any]:
    sentences = [swap.sentence for swap in swaps]
    wanted, got = log_changes(swaps, measure)
    scored = np.isfinite(got)
    swapped = np.where(scored, _column(swaps, measure, "swapped"), np.nan)
    moved = np.log(_column(swaps, measure, "whole") / _column(swaps, measure, "unchanged"))
    return {
        "failed": int(len(swaps) - scored.sum()),
        "absolute": _line(_column(swaps, measure, "b"), swapped, sentences),
        "relative": _line(wanted, got, sentences),
        "whole": _line(wanted, moved, sentences),
        "neighbours": _neighbours(swaps, measure, wanted),
    }


def _neighbours(swaps: Sequence[Swap], measure: str, wanted: np.ndarray) -> dict[str, Any]:
    """Changes are in seconds or semitones; `slope` is what `relative` has, for the neighbour."""
    beside = [one for swap in swaps for one in swap.measures[measure].neighbours]
    unchanged, again, swapped = (
        np.array([getattr(one, name) for one in beside], np.float64)
        for name in ("unchanged", "again", "swapped")
    )
    sentences = [swap.sentence for swap in swaps for _ in range(2)]
    if measure == PITCH:
        change, repeated = 12 * np.log2(swapped / unchanged), 12 * np.log2(again / unchanged)
    else:
        change, repeated = swapped - unchanged, again - unchanged
    line = _line(np.repeat(wanted, 2), np.log(swapped / unchanged), sentences)
    return {
        "failed": int(np.isnan(change).sum()),
        "slope": line["slope"],
        **_changes(change, sentences, LIMITS[measure]),
        "repeated": _changes(repeated, sentences, LIMITS[measure]),
    }


def _changes(changes: np.ndarray, sentences: Sequence[str], limit: float) -> dict[str, Any]:
    found = np.isfinite(changes)
    changes, groups = changes[found], np.array(sentences)[found]
    size = np.abs(changes)
    return {
        "n": len(changes),
        "mean": fit_mean(changes, groups),
        "absolute": fit_mean(size, groups),
        "within": fit_mean(size <= limit + 1e-6, groups),
    }


def _line(x: np.ndarray, y: np.ndarray, sentences: Sequence[str]) -> dict[str, Any]:
    keep = np.isfinite(x) & np.isfinite(y)
    line = fit_line(x[keep], y[keep], np.array(sentences)[keep])
    return {field.name: getattr(line, field.name) for field in dataclasses.fields(line)}
