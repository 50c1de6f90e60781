"""DNSMOS: how clean and natural a network takes speech to be, on listeners' scale of 1 to 5."""

from __future__ import annotations

import numpy as np

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError

try:
    from speechmos import dnsmos
except ImportError as missing:
    raise UserError(
        f"DNSMOS is not installed: {missing}", "pip install 'slm_jax[eval]'"
    ) from missing


def overall(audio: np.ndarray) -> float:
    """DNSMOS P.835 overall (Reddy et al. 2022, arXiv 2110.01763), by the package speechmos.

    It hears 9.01 s at a time; a shorter clip is doubled until it is long enough, by its own code.

    Args:
      audio: float32 [n], n > 0, 16 kHz mono; clipped to [-1, 1].
    """
    if not len(audio):
        raise ValueError("there is nothing to score")
    return float(dnsmos.run(np.clip(audio, -1, 1), AUDIO_RATE)["ovrl_mos"])
