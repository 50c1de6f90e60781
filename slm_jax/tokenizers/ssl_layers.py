"""The parts that wav2vec 2.0, HuBERT and WavLM are made of.

wav2vec 2.0: Baevski et al. 2020 (arXiv 2006.11477); HuBERT: Hsu et al. 2021 (arXiv 2106.07447);
WavLM: Chen et al. 2022 (arXiv 2110.13900). Same functions as the classes of those names in
transformers, in evaluation mode.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.layers import LECUN_NORMAL, LayerNorm, Linear, gelu

Norm = Literal["group", "layer"] | None
Count = TypeVar("Count", int, np.ndarray, jax.Array)
_GATE_PARTS = 4  # each of a layer's two gates is the sum of so many outputs of one projection


class TimeNorm(nnx.Module):
    """(x - mean) / std * scale + bias with the statistics of each channel over its valid frames.

    This is the group norm, one channel a group, of the base models. Theirs in transformers counts
    the padding of a batch as well, so that a row's features change with the other rows'.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(width), axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B, T, D], valid [B, T] -> [B, T, D]."""
        mean, variance = moments(x, valid)
        x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return x * self.scale[...] + self.bias[...]


class ConvLayer(nnx.Module):
    """Unpadded strided convolution, a norm if any, GELU: [B, T, in] -> [B, T', out].

    Frame t of the output reads frames t * stride to t * stride + kernel - 1, so the valid frames
    of the output read valid frames only.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        bias: bool,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        init = LECUN_NORMAL(rngs.params(), (kernel, inputs, outputs))
        self.kernel = nnx.Param(init, axes=(None, None, None))
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,)) if bias else None
        self.norm = {"group": TimeNorm, "layer": LayerNorm}[norm](outputs) if norm else None
        self.stride = stride

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, in] with lengths [B] valid frames -> output [B, T', out] and its lengths [B]."""
        lengths = frames_out(lengths, self.kernel.shape[0], self.stride)
        x = _conv(x, self.kernel[...], self.stride)
        if self.bias is not None:
            x += self.bias[...]
        if isinstance(self.norm, TimeNorm):
            x = self.norm(x, jnp.arange(x.shape[1]) < lengths[:, None])
        elif self.norm is not None:
            x = self.norm(x)
        return gelu(x), lengths


class PositionConv(nnx.Module):
    """Relative positions from a wide grouped convolution and GELU: [B, T, D] -> [B, T, D].

    The checkpoints' weight norm is folded into the kernel when they are read.
    """

    def __init__(self, width: int, *, kernel: int, groups: int, rngs: nnx.Rngs):
        init = LECUN_NORMAL(rngs.params(), (kernel, width // groups, width))
        self.kernel = nnx.Param(init, axes=(None, None, "embed"))
        self.bias = nnx.Param(jnp.zeros(width), axes=("embed",))
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, groups = self.kernel[...], self.groups
        taps = kernel.shape[0]
        x = jnp.pad(x, ((0, 0), (taps // 2, (taps - 1) // 2), (0, 0)))
        if jax.default_backend() == "cpu":
            # XLA:CPU is many times slower with groups, and with a kernel longer than its input, for
            # which the padding is explicit.
            pairs = zip(*(jnp.split(part, groups, axis=-1) for part in (x, kernel)), strict=True)
            x = jnp.concatenate([_conv(part, weights, 1) for part, weights in pairs], axis=-1)
        else:
            x = _conv(x, kernel, 1, groups)
        return gelu(x + self.bias[...])


class SelfAttention(nnx.Module):
    """Multi-head self-attention, with WavLM's gate of a bias by relative position if `gated`."""

    def __init__(self, width: int, heads: int, *, gated: bool, rngs: nnx.Rngs):
        into, out = ("embed", "heads"), ("heads", "embed")
        self.q = Linear(width, width, bias=True, axes=into, rngs=rngs)
        self.k = Linear(width, width, bias=True, axes=into, rngs=rngs)
        self.v = Linear(width, width, bias=True, axes=into, rngs=rngs)
        self.o = Linear(width, width, bias=True, axes=out, rngs=rngs)
        self.heads = heads
        if gated:
            outputs = 2 * _GATE_PARTS
            self.gate = Linear(width // heads, outputs, bias=True, axes=(None, None), rngs=rngs)
            self.gate_scale = nnx.Param(jnp.ones(heads), axes=(None,))

    def __call__(self, x: jax.Array, valid: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Attends to valid positions.

        Args:
          x: [B, T, D].
          valid: bool [B, T].
          bias: [H, T, T] by query and key, added to the scores of a gated attention; else None.
        """
        q, k, v = (self._split(part(x)) for part in (self.q, self.k, self.v))
        if bias is None:
            segments = valid.astype(jnp.int32)
            mask = MaskSpec(q_segment_ids=segments, kv_segment_ids=segments)
            mixed = attention(q, k, v, mask)
        else:
            mixed = _biased_attention(q, k, v, valid, self._gates(x)[..., None] * bias)
        return self.o(mixed.reshape(x.shape))

    def _gates(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> what each query multiplies its bias with, [B, H, T].

        The "gated relative position bias" of the WavLM paper.
        """
        parts = self.gate(self._split(x))
        sums = parts.reshape(*parts.shape[:-1], 2, _GATE_PARTS).sum(-1)
        update, reset = jnp.moveaxis(jax.nn.sigmoid(sums), -1, 0)
        return jnp.swapaxes(1 + update * reset * self.gate_scale[...] + (1 - update), 1, 2)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class Layer(nnx.Module):
    """Transformer layer: [B, T, D] -> [B, T, D]; norms before or behind each half."""

    def __init__(
        self, width: int, heads: int, mlp: int, *, pre_norm: bool, gated: bool, rngs: nnx.Rngs
    ):
        self.attention = SelfAttention(width, heads, gated=gated, rngs=rngs)
        self.attention_norm = LayerNorm(width)
        self.up = Linear(width, mlp, bias=True, rngs=rngs)
        self.down = Linear(mlp, width, bias=True, axes=("mlp", "embed"), rngs=rngs)
        self.mlp_norm = LayerNorm(width)
        self.pre_norm = pre_norm

    def __call__(self, x: jax.Array, valid: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x [B, T, D], valid bool [B, T], bias [H, T, T] or None."""
        if self.pre_norm:
            x += self.attention(self.attention_norm(x), valid, bias)
            return x + self._mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, valid, bias))
        return self.mlp_norm(x + self._mlp(x))

    def _mlp(self, x: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(x)))


def frames_out(frames: Count, kernel: int, stride: int) -> Count:
    """Frames that an unpadded convolution makes of so many; 0 of too few."""
    made = (frames - kernel) // stride + 1
    return made * (made > 0)


def moments(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the valid of x [B, T, D]: [B, 1, D] each; valid [B, T]."""
    # Sums of what is picked, divided once: XLA:CPU takes 20 times as long to multiply with a mask,
    # and 300 times with a weight, whose sum it takes again for every x.
    kept = valid[..., None]
    count = jnp.maximum(kept.sum(axis=1, keepdims=True), 1).astype(x.dtype)
    mean = jnp.where(kept, x, 0).sum(axis=1, keepdims=True) / count
    return mean, jnp.where(kept, (x - mean) ** 2, 0).sum(axis=1, keepdims=True) / count


def relative_buckets(length: int, buckets: int, furthest: int) -> np.ndarray:
    """int32 [T, T]: the bucket of each key (column) as each query (row) sees it.

    Half of the buckets are for keys that come after the query. Of each half, the lower half stands
    for one distance each, and the upper for distances up to `furthest` on a logarithmic scale (T5,
    Raffel et al. 2020, arXiv 1910.10683; as WavLM's `_relative_positions_bucket`).
    """
    ahead = np.arange(length)[None] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(ahead)
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
    octaves /= np.float32(np.log(furthest / exact))
    far = np.minimum(exact + (octaves * (half - exact)).astype(np.int32), half - 1)
    return (ahead > 0) * half + np.where(distance < exact, distance, far).astype(np.int32)


def _biased_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, bias: jax.Array
) -> jax.Array:
    """q, k, v [B, T, H, h], valid [B, T], bias [B, H, T, T] -> [B, T, H, h]."""
    scores = jnp.einsum("bshd,bthd->bhst", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5 + bias
    scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _conv(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    """x [B, T, in], kernel [k, in / groups, out] -> [B, T', out], unpadded."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
