"""Weights in a byte each, for starters that ship with the code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_SCALE = ".scale"


def pack(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """path -> array: kernels as int8 with a float16 scale for each output, all else as float16.

    A weight is off by at most 1/254 of the largest of its output, beside the rounding to float16.
    """
    packed = {}
    for name, value in flat.items():
        value = np.asarray(value, np.float32)
        if not name.endswith("kernel"):
            packed[name] = value.astype(np.float16)
            continue
        scale = np.abs(value).max(axis=tuple(range(value.ndim - 1))) / 127
        scale = np.maximum(scale, 1e-6).astype(np.float16)
        packed[name] = np.clip(np.round(value / scale.astype(np.float32)), -127, 127).astype(
            np.int8
        )
        packed[name + _SCALE] = scale
    return packed


def unpack(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `pack` made -> path -> float32 array."""
    return {
        name: value.astype(np.float32)
        * (packed[name + _SCALE].astype(np.float32) if name + _SCALE in packed else 1)
        for name, value in packed.items()
        if not name.endswith(_SCALE)
    }
