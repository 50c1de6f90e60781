"""A number that two batches share only if they are equal, wherever their rows lie."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def digest(batch: Mapping[str, jax.Array]) -> jax.Array:
    """uint32 of a batch's values, their places and its names' order; no cryptography.

    A sum of well mixed integers, exact in any order: the same on one device and on many hosts.
    """
    total = jnp.uint32(0)
    for number, (_, values) in enumerate(sorted(batch.items())):
        place = jnp.full(values.shape, number, jnp.uint32)
        for axis, size in enumerate(values.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, values.shape, axis
            )
        total += _mix(_bits(values) ^ _mix(place)).sum(dtype=jnp.uint32)
    return total


def _bits(values: jax.Array) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return values.astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer (Appleby 2011, public domain), a bijection of uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
