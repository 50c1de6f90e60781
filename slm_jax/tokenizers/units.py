"""Unit sequences without repeats: a run of equal units as one unit and how long it lasts.

The deduplication of GSLM (Lakhotia et al. 2021, arXiv 2102.01192), with the durations kept as in
pGSLM (Kharitonov et al. 2022, arXiv 2109.03264), so that nothing is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """Units that differ from the one before, and their durations in frames; int32 [m] each."""

    units: np.ndarray
    durations: np.ndarray


def deduplicate(units: np.ndarray) -> Runs:
    """int [n] -> its runs, m <= n.

    Raises:
      ValueError: `units` is no vector of integers.
    """
    units = _vector("units", units)
    starts = np.flatnonzero(np.diff(units, prepend=units[:1] - 1))
    durations = np.diff(starts, append=len(units))
    return Runs(units[starts].astype(np.int32), durations.astype(np.int32))


def repeat(units: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Each unit for as many frames as it lasts: int [m], int [m] -> int32 [sum of durations].

    Undoes `deduplicate`. Predicted durations may be 0, which drops the unit.

    Raises:
      ValueError: not two vectors of integers of one length, or a negative duration.
    """
    units, durations = _vector("units", units), _vector("durations", durations)
    if len(units) != len(durations) or (durations < 0).any():
        raise ValueError(f"{len(units)} units need as many durations, none of them negative")
    return np.repeat(units, durations).astype(np.int32)


def _vector(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name} are {values.dtype}{list(values.shape)}, wanted int [n]")
    return values.astype(np.int64)
