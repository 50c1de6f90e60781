"""Lines and means over words that come in sentences, with intervals that know it.

Words of one sentence share its reading, so the bootstrap draws sentences, not words. Every figure
here is a function of sums over words, hence a draw only adds up the sums of its sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Estimate(NamedTuple):
    """A figure and its 95 % bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Line:
    """Least squares of y on x.

    Attributes:
      n, groups: words, and the sentences they are of.
      slope, intercept: of the line.
      correlation: Pearson's.
    """

    n: int
    groups: int
    slope: Estimate
    intercept: Estimate
    correlation: Estimate


def fit_line(x: Sequence[float], y: Sequence[float], groups: Sequence[str]) -> Line:
    """Regresses y on x; without two different x everything is NaN.

    Args:
      x, y: [n], finite.
      groups: [n], what the bootstrap draws.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not len(x):
        undefined = Estimate(np.nan, np.nan, np.nan)
        return Line(0, 0, undefined, undefined, undefined)
    mx, my = x.mean(), y.mean()  # centred, or the sums of squares would lose their digits
    cx, cy = x - mx, y - my

    def figures(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, sxy, syy = sums.T
        vx, vy, both = sxx - sx * sx / n, syy - sy * sy / n, sxy - sx * sy / n
        vx = np.where(vx > 1e-12 * (sxx + mx * mx * n), vx, np.nan)
        vy = np.where(vy > 1e-12 * (syy + my * my * n), vy, np.nan)
        slope = both / vx
        intercept = my + sy / n - slope * (mx + sx / n)
        return np.stack([slope, intercept, both / np.sqrt(vx * vy)], axis=-1)

    columns = np.stack([np.ones_like(cx), cx, cy, cx * cx, cx * cy, cy * cy], axis=-1)
    return Line(len(x), len(set(groups)), *_bootstrap(columns, groups, figures))


def fit_mean(values: Sequence[float], groups: Sequence[str]) -> Estimate:
    """The mean over words; NaN of none."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    columns = np.stack([np.ones_like(values), values], axis=-1)
    return _bootstrap(columns, groups, lambda sums: sums[:, 1:] / sums[:, :1])[0]


def _bootstrap(
    columns: np.ndarray, groups: Sequence[str], figures: Callable[[np.ndarray], np.ndarray]
) -> list[Estimate]:
    """figures: sums [draws, columns] -> [draws, figures]."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, index, columns)
    share = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(0).multinomial(len(names), share, size=DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = figures(sums.sum(axis=0, keepdims=True))[0]
        drawn = figures(counts @ sums)
    out = []
    for own, column in zip(value, drawn.T, strict=True):
        column = column[np.isfinite(column)]
        if not np.isfinite(own) or not len(column):
            out.append(Estimate(np.nan, np.nan, np.nan))
        else:
            out.append(Estimate(float(own), *map(float, np.quantile(column, [0.025, 0.975]))))
    return out
