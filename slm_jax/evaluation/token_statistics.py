"""How well a discrete stream uses its codebooks, and what it costs in bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def token_statistics(
    codes: Sequence[np.ndarray], vocab: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Use, entropy and rate of a stream.

    Args:
      codes: one int [items, levels] an utterance.
      vocab: codes per level.
      seconds: duration of all utterances together.

    Returns:
      items, seconds, items_per_second; bits_per_second (every code at log2 of its vocabulary) and
      entropy_bits_per_second (at the empirical entropy of its level, levels taken as independent);
      levels: vocab, used (codes that occur), entropy_bits, perplexity, counts.

    Raises:
      ValueError: there are no codes, or a code lies outside its vocabulary.
    """
    if not codes or seconds <= 0:
        raise ValueError("token statistics need at least one utterance with a duration")
    flat = np.concatenate(codes)
    levels = []
    for level, size in enumerate(vocab):
        counts = np.bincount(flat[:, level], minlength=size)
        if len(counts) > size:
            raise ValueError(f"level {level} has code {len(counts) - 1} of a vocabulary of {size}")
        p = counts[counts > 0] / len(flat)
        entropy = float(-(p * np.log2(p)).sum())
        levels.append(
            {
                "vocab": size,
                "used": int((counts > 0).sum()),
                "entropy_bits": entropy,
                "perplexity": 2**entropy,
                "counts": counts.tolist(),
            }
        )
    rate = len(flat) / seconds
    return {
        "items": len(flat),
        "seconds": float(seconds),
        "items_per_second": rate,
        "bits_per_second": rate * float(np.log2(vocab).sum()),
        "entropy_bits_per_second": rate * sum(level["entropy_bits"] for level in levels),
        "levels": levels,
    }
