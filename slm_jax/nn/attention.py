"""One attention for every network: grouped heads, and a mask told as what it means.

`choose` says which of four implementations computes it: XLA everywhere; for packed causal rows
splash attention on TPU and flash attention on GPU; cuDNN on GPU for rows without segments, because
cuDNN knows none.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp

from slm_jax.nn import flash, head_by_head, splash

Backend = Literal["xla", "splash", "flash", "cudnn"]
_forced: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("backend", default=None)
_LARGE = 2**16  # scores of a head, from which on a CPU takes one head after the other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Which of T keys each of S queries sees: every condition given must hold.

    Attributes:
      causal: keys whose position is not after the query's.
      window: keys fewer than this many positions before the query (sliding window); with `causal`
        a query sees `window` keys, itself included.
      q_segment_ids, kv_segment_ids: int [B, S] and [B, T]; keys of the query's own segment. Give
        padding the id 0. Both or neither.
      q_positions, kv_positions: int [B, S] and [B, T]; default is 0, 1, 2... They may restart in
        each segment. Without segment ids, a key that must stay hidden from a causal query can be
        given a position beyond it: an unwritten cache slot is.
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    q_segment_ids: jax.Array | None = None
    kv_segment_ids: jax.Array | None = None
    q_positions: jax.Array | None = None
    kv_positions: jax.Array | None = None

    def dense(self, queries: int, keys: int) -> jax.Array | None:
        """bool [B or 1, S, T], True where the query sees the key; None when it sees all."""
        q = jnp.arange(queries)[None] if self.q_positions is None else self.q_positions
        kv = jnp.arange(keys)[None] if self.kv_positions is None else self.kv_positions
        ahead = kv[:, None, :] - q[:, :, None]
        conditions = []
        if self.causal:
            conditions.append(ahead <= 0)
        if self.window is not None:
            conditions.append(ahead > -self.window)
        if (self.q_segment_ids is None) != (self.kv_segment_ids is None):
            raise ValueError("MaskSpec: give q_segment_ids and kv_segment_ids, or neither")
        if self.q_segment_ids is not None and self.kv_segment_ids is not None:
            conditions.append(self.q_segment_ids[:, :, None] == self.kv_segment_ids[:, None, :])
        mask = None
        for condition in conditions:
            mask = condition if mask is None else mask & condition
        return mask


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskSpec) -> jax.Array:
    """Softmax attention, scores in f32, scaled by head_dim ** -0.5.

    Args:
      q: [B, S, H, h].
      k: [B, T, Hkv, h]; H is a multiple of Hkv, and query head i reads key head i // (H / Hkv).
      v: [B, T, Hkv, h].
      mask: who sees whom. A query that sees no key gets the mean of all values, never NaN.

    Returns:
      [B, S, H, h] in the dtype of `v`.
    """
    backend = _forced.get() or choose(q, k, mask, platform())
    if backend == "splash":
        return splash.attention(q, k, v, mask.q_segment_ids, window=mask.window)
    if backend == "flash":
        return flash.attention(q, k, v, mask.q_segment_ids)
    if backend == "cudnn":
        window = None if mask.window is None else (mask.window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=mask.causal, local_window_size=window, implementation="cudnn"
        )
    return _xla(q, k, v, mask)


def platform() -> str:
    """Of the mesh in use: "cpu", "gpu" or "tpu", which may be of chips that are not here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose(q: jax.Array, k: jax.Array, mask: MaskSpec, platform: str) -> Backend:
    """The fastest implementation that honours all of `mask` for q [B, S, H, h], k [B, T, Hkv, h].

    All but XLA tell order by the place in the row. cuDNN has no segments, and given them by other
    libraries ignores them without a word; flash attention has no window.
    """
    if not (mask.causal and _in_row(q, k, mask)):
        return "xla"
    if platform == "tpu" and splash.fits(q, k):
        return "splash"
    if platform == "gpu" and mask.q_segment_ids is not None:
        return "flash" if mask.window is None and flash.fits(q, k) else "xla"
    return "cudnn" if platform == "gpu" and _cudnn_takes(q) else "xla"


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Traces every attention inside with `backend`, whatever `choose` says."""
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskSpec) -> jax.Array:
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    visible = mask.dense(queries, keys)
    alone = jax.sharding.get_abstract_mesh().size <= 1  # a loop over heads would send each to all
    chosen = _forced.get() is None  # where "xla" is asked for, products stay whole, to be counted
    if chosen and queries * keys >= _LARGE and platform() == "cpu" and alone:
        return head_by_head.attention(q, k, v, visible, mask.causal and _in_row(q, k, mask))
    q = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k, preferred_element_type=jnp.float32)
    weights = _weights(scores, width, None if visible is None else visible[:, None, None])
    out = jnp.einsum("bkgst,btkh->bskgh", weights.astype(v.dtype), v)
    return out.reshape(batch, queries, heads, width)


def _cudnn_takes(q: jax.Array) -> bool:
    """What `jax.nn.dot_product_attention` refuses else; heads up to 256 from Hopper on alone."""
    _, columns, _, width = q.shape
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and columns % 2 == 0 and width % 8 == 0 and width <= 128


def _in_row(q: jax.Array, k: jax.Array, mask: MaskSpec) -> bool:
    """Whether a row attends to itself and tells order by the place in it."""
    by_place = mask.q_positions is None and mask.kv_positions is None
    return by_place and q.shape[1] == k.shape[1] and mask.q_segment_ids is mask.kv_segment_ids


def _weights(scores: jax.Array, width: int, visible: jax.Array | None) -> jax.Array:
    scores = scores * width**-0.5
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)
