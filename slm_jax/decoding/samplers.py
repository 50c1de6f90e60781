"""How the next id is picked from logits: greedy, or temperature, top-k, top-p, with a penalty."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One row's sampler. The default is greedy.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: keep the k likeliest ids; 0 keeps all.
      top_p: keep the likeliest ids until their probability reaches p (nucleus sampling, Holtzman
        et al. 2020); 1 keeps all. The likeliest id always stays.
      repetition_penalty: above 1 makes ids seen before less likely (CTRL, Keskar et al. 2019).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        checks = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is none"),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")


def penalize(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Divides positive and multiplies negative logits of seen ids: logits [B, V], seen bool."""
    worse = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, worse, logits)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Logits [B, V] with all but the k largest at -inf (ties with the k-th stay)."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < kth, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Logits [B, V] without the tail that lies beyond the likeliest ids of total probability p.

    An id stays while those likelier than it have less than p together; equals stay together. The
    smallest probability that stays is found by bisection over the bits of a float, exactly and
    without a sort, which on CPUs would cost more than the model.
    """
    shares = jax.nn.softmax(logits, axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        above = jnp.sum(jnp.where(shares > threshold, shares, 0), axis=-1, keepdims=True) < p
        return jnp.where(above, low, middle + 1), jnp.where(above, middle, high)

    # Positive floats are ordered as their bits are; nothing is likelier than the likeliest.
    high = jax.lax.bitcast_convert_type(shares.max(axis=-1, keepdims=True), jnp.int32)
    _, least = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    keep = shares >= jax.lax.bitcast_convert_type(least, jnp.float32)
    return jnp.where(keep, logits, -jnp.inf)


def sample(
    key: jax.Array, logits: jax.Array, sampling: Sampling, seen: jax.Array | None = None
) -> jax.Array:
    """Picks one id a row: logits [B, V] (banned ids at -inf), seen [B, V] bool -> int32 [B].

    The order is penalty, temperature, top-k, top-p. `seen` is needed when there is a penalty.
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
