"""Sample-rate conversion."""

from __future__ import annotations

import numpy as np
import soxr


def resample(audio: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Band-limited, linear-phase conversion by soxr at its HQ setting (20-bit), without delay.

    Args:
      audio: float32 [n], mono.
      rate_in: Hz.
      rate_out: Hz.

    Returns:
      float32 [about n * rate_out / rate_in]; the input itself if the rates are equal.
    """
    if rate_in <= 0 or rate_out <= 0:
        raise ValueError(f"sample rates must be positive, got {rate_in} and {rate_out}")
    if rate_in == rate_out:
        return audio
    return soxr.resample(audio, rate_in, rate_out, quality="HQ")
