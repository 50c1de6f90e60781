"""Attention of one head after the other, for CPUs, with a backward pass of its own.

XLA:CPU multiplies one pair of matrices faster than a batch of them, and the scores of a block of
one head's queries stay in its caches. Blocks that no query may see are not computed, and scores are
read as seldom as can be: the scale is on the queries, and what brings the weights to a sum of 1 on
the products with them. Of all that, the backward pass keeps two numbers a query and head, and
computes the weights again (FlashAttention-2: Dao 2023, arXiv:2307.08691, algorithms 1 and 2).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_BLOCK = 128  # queries that are taken at once, or an eighth of all where these are more
_PARTS = 8

_Kept = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None, in_row: bool
) -> jax.Array:
    """Softmax attention, scores in f32, scaled by head_dim ** -0.5.

    Args:
      q: [B, S, H, h].
      k, v: [B, T, Hkv, h]; query head i reads key head i // (H / Hkv).
      visible: bool [B or 1, S, T], True where the query sees the key; None when it sees all.
      in_row: S is T, and each query sees itself and no key after itself.

    Returns:
      [B, S, H, h] in the dtype of `v`.
    """
    return _forward(q, k, v, visible, in_row)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None, in_row: bool
) -> tuple[jax.Array, _Kept]:
    def head(one: _Kept) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, q, k, v = one
        found = []
        for queries, keys in _blocks(q.shape[1], k.shape[0], in_row):
            scores = _scores(q[:, queries], k[keys], _seen(visible, row, queries, keys))
            highest = scores.max(axis=-1)
            weights = jnp.exp(scores - highest[..., None])
            total = weights.sum(axis=-1)
            mixed = jnp.einsum("gst,th->gsh", weights.astype(v.dtype), v[keys])
            found.append((mixed / total[..., None].astype(v.dtype), highest, total))
        return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))

    mixed, highest, total = jax.lax.map(head, _heads(q, k, v))
    out = _columns_first(mixed, q.shape)
    return out, (q, k, v, visible, out, highest, total)


def _backward(
    in_row: bool, kept: _Kept, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, visible, out, highest, total = kept
    rows, heads_q, heads_k, heads_v = _heads(q, k, v)
    of_out = (g * out).astype(jnp.float32).sum(axis=-1, keepdims=True)
    width, group = q.shape[-1], heads_q.shape[1]

    def head(one: _Kept) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, q, k, v, g, of_out, highest, total = one
        # With the gradient divided by the sums in place of the weights, these stay unread.
        g = g / total[..., None].astype(g.dtype)
        of_out = of_out / total[..., None]
        of_q = []
        of_k = jnp.zeros(k.shape[::-1], jnp.float32)
        of_v = jnp.zeros(v.shape[::-1], jnp.float32)
        for queries, keys in _blocks(q.shape[1], k.shape[0], in_row):
            seen = _seen(visible, row, queries, keys)
            scores = _scores(q[:, queries], k[keys], seen)
            weights = jnp.exp(scores - highest[:, queries, None])
            of_weights = jnp.einsum(
                "gsh,th->gst", g[:, queries], v[keys], preferred_element_type=jnp.float32
            )
            of_scores = weights * (of_weights - of_out[:, queries])
            if seen is not None:  # a query that sees nothing weighs all, whatever their scores
                of_scores = jnp.where(seen, of_scores, 0)
            of_scores = of_scores.astype(q.dtype)
            of_q.append(jnp.einsum("gst,th->gsh", of_scores, k[keys]))
            # As [h, T], because XLA:CPU is slow where the larger factor is the transposed one.
            of_k = of_k.at[:, keys].add(_sum(q[:, queries], of_scores))
            of_v = of_v.at[:, keys].add(_sum(g[:, queries], weights.astype(g.dtype)))
        return jnp.concatenate(of_q, axis=1), of_k.T.astype(k.dtype), of_v.T.astype(v.dtype)

    by_head = (_by_head(x, group) for x in (g, of_out))
    of_q, of_k, of_v = jax.lax.map(
        head, (rows, heads_q, heads_k, heads_v, *by_head, highest, total)
    )
    of_q = _columns_first(of_q, q.shape) * width**-0.5
    return (
        of_q,
        _columns_first(of_k[:, None], k.shape),
        _columns_first(of_v[:, None], v.shape),
        None,
    )


attention.defvjp(_forward, _backward)


def _blocks(queries: int, keys: int, in_row: bool) -> list[tuple[slice, slice]]:
    """Queries that are taken at once, and the keys of which they may see some."""
    size = max(_BLOCK, -(-queries // _PARTS))
    ends = [min(start + size, queries) for start in range(0, queries, size)]
    return [
        (slice(start, end), slice(0, end if in_row else keys))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _seen(
    visible: jax.Array | None, row: jax.Array, queries: slice, keys: slice
) -> jax.Array | None:
    """bool [1, queries, keys]."""
    if visible is None:
        return None
    return jnp.take(visible, row, axis=0, mode="clip")[None, queries, keys]


def _scores(q: jax.Array, k: jax.Array, seen: jax.Array | None) -> jax.Array:
    """q [G, S, h], k [T, h] -> [G, S, T]."""
    scores = jnp.einsum("gsh,th->gst", q, k, preferred_element_type=jnp.float32)
    return scores if seen is None else jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def _sum(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [G, S, h], weights [G, S, T] -> [h, T]."""
    return jnp.einsum("gsh,gst->ht", x, weights, preferred_element_type=jnp.float32)


def _heads(q: jax.Array, k: jax.Array, v: jax.Array) -> _Kept:
    """For each row and head of keys: the row, its scaled queries [G, S, h], keys and values."""
    rows = jnp.repeat(jnp.arange(k.shape[0]), k.shape[2])
    group = q.shape[2] // k.shape[2]
    k, v = (_by_head(x, 1)[:, 0] for x in (k, v))
    return rows, _by_head(q * q.shape[-1] ** -0.5, group), k, v


def _by_head(x: jax.Array, group: int) -> jax.Array:
    """[B, S, H, h] -> [B * H / G, G, S, h]."""
    return x.swapaxes(1, 2).reshape(-1, group, x.shape[1], x.shape[3])


def _columns_first(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `_by_head`."""
    batch, length, heads, width = shape
    return x.reshape(batch, heads, length, width).swapaxes(1, 2)
