"""Losses of single predictions, unsummed."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """-log p(target) in nats, f32 [...], by log-sum-exp and a gather; no log-softmax of all ids.

    Args:
      logits: [..., V].
      targets: int [...]; where `weights` is 0 they need not lie in [0, V).
      weights: [...].
    """
    logits = logits.astype(jnp.float32)
    safe = jnp.where(weights > 0, targets, 0)
    chosen = jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
