"""A figure and how far it can be trusted: ratios of sums over utterances, with their bootstrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value, its 95 % interval (percentile bootstrap over utterances), and how many there are."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


def ratio(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray | None
) -> Figure | None:
    """Sum over sum, resampled by utterance.

    Everything measured here has this form: a word error rate (edits over words), a share of words,
    a mean (denominators None: all one). Differences of two systems are *paired*, the same
    utterances drawn for both, when the numerators are differences.

    Args:
      numerators: one an utterance; NaN leaves the utterance out (it failed).
      denominators: one an utterance, or None for ones.

    Returns:
      The figure, the same for the same input; None where no utterance counts.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    counts = np.isfinite(top) & np.isfinite(bottom)
    top, bottom = top[counts], bottom[counts]
    if not len(top) or bottom.sum() == 0:
        return None
    rows = np.random.default_rng(0).integers(0, len(top), (DRAWS, len(top)))
    tops, bottoms = top[rows].sum(1), bottom[rows].sum(1)
    usable = bottoms != 0  # a draw of utterances without words has no rate
    low, high = np.quantile(tops[usable] / bottoms[usable], [0.025, 0.975])
    return Figure(float(top.sum() / bottom.sum()), float(low), float(high), len(top))
