"""Straight paths from noise to data, and what any network that follows them needs.

Lipman et al. 2022 (arXiv 2210.02747 §4.1, example II: optimal-transport paths); without the rest of
noise at the end, the rectified flow of Liu et al. 2022 (arXiv 2209.03003).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Field = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, ..., F], t [B]) -> dx/dt [B, ..., F]

TIME_FEATURES = 64
_SIGMA = 1e-4  # deviation that is left of the noise at t = 1


def time_features(t: jax.Array) -> jax.Array:
    """t [...] in [0, 1] -> [..., 64], cosines and sines of 1 to 1000 radians a unit of time."""
    rates = jnp.logspace(0.0, 3.0, TIME_FEATURES // 2)
    angles = t[..., None] * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def path(noise: jax.Array, data: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the optimal-transport path from noise to data is at t, and its velocity, which is the
    same all the way (Lipman et al. eq. 22-23).

    Args:
      noise, data: of one shape.
      t: in [0, 1]; its axes are the first ones of data.
    """
    t = jnp.expand_dims(t, range(t.ndim, data.ndim))
    return (1 - (1 - _SIGMA) * t) * noise + t * data, data - (1 - _SIGMA) * noise


def euler(field: Field, start: jax.Array, steps: int) -> jax.Array:
    """Follows dx/dt = field(x, t) from `start` [B, ..., F] at t = 0 to t = 1 in equal steps."""

    def step(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        return x + field(x, jnp.full(len(x), number / steps)) / steps, None

    return jax.lax.scan(step, start, jnp.arange(steps))[0]
