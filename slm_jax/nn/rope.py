"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and its published scalings."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How a model stretches its rotary frequencies beyond the context it was first trained on.

    Attributes:
      kind: "linear" divides all frequencies by `factor` (Chen et al. 2023, arXiv:2306.15595);
        "llama3" divides the low ones, keeps the high ones and blends between, as in Llama 3.1
        (`rope_type: llama3` of the published configurations).
      factor: how many times longer the context gets.
      low_frequency_factor, high_frequency_factor, original_length: "llama3" only. Waves longer
        than original_length / low_frequency_factor positions are stretched, those shorter than
        original_length / high_frequency_factor are kept.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """f32 [head_dim / 2], radians per position of each rotated pair."""
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        waves = scaling.original_length * frequency / (2 * math.pi)  # in the original context
        kept = np.clip((waves - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    return frequency.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotates the pairs (i, i + h/2) of every head, the convention of the HF checkpoints.

    Args:
      x: [B, S, H, h].
      positions: int [B, S].
      frequencies: [h / 2], from `inverse_frequencies`.

    Returns:
      [B, S, H, h] in the dtype of `x`; computed in f32.
    """
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
