"""Losses of single predictions, unsummed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from slm_jax.nn.attention import platform
from slm_jax.nn.remat import recomputed

# (logits [..., V], targets [...], weights [...]) -> [...]
TokenLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> jax.Array:
    """-log p(target) in nats, f32 [...], by log-sum-exp and a gather; no log-softmax of all ids.

    Args:
      logits: [..., V].
      targets: int [...]; where `weights` is 0 they need not lie in [0, V).
      weights: [...].
      label_smoothing: share of the target's probability that all ids have in equal parts (Szegedy
        et al. 2016, arXiv:1512.00567 §7).
      z_loss: adds so much of the squared log of the softmax's denominator, which keeps logits near
        zero (Chowdhery et al. 2022, arXiv:2204.02311 §5).
    """
    logits = logits.astype(jnp.float32)
    safe = jnp.where(weights > 0, targets, 0)
    chosen = _at(logits, safe)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - chosen
    if label_smoothing:
        loss += label_smoothing * (chosen - logits.mean(-1))
    if z_loss:
        loss += z_loss * log_z**2
    return loss


def _at(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Of logits [..., V] those at ids [...]."""
    if platform() == "tpu":
        return _compared(logits, ids)
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]


@recomputed
def _compared(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """The same by comparison, which joins the sum of the softmax and its gradient.

    On a TPU a gather of single numbers, and the scatter of its gradient, are steps of their own,
    with all logits in f32 between them.
    """
    here = jax.lax.broadcasted_iota(ids.dtype, logits.shape, logits.ndim - 1) == ids[..., None]
    return jnp.where(here, logits, 0).sum(-1)
