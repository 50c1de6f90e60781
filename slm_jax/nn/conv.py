"""1-D convolutions over [B, T, D], with a bounded, declared look-ahead.

ConvNeXt blocks (Liu et al. 2022, arXiv 2201.03545, eq.-free; 1-D as in Vocos, arXiv 2306.00814):
depthwise convolution, LayerNorm, pointwise expansion, GELU, pointwise projection, layer scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import LayerNorm, Linear, scan_layers, stack


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [B, T, D], kernel [k, D] with k odd -> [B, T, D], zero padded on both sides.

    A sum of shifted products: XLA:CPU runs grouped convolutions, and above all their gradients,
    many times slower than these fused multiplications.
    """
    taps, half = kernel.shape[0], kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
    out = bias
    for tap in range(taps):
        out = out + padded[:, tap : tap + x.shape[1]] * kernel[tap]
    return out


class Conv1d(nnx.Module):
    """Dense convolution as one product over the unfolded window: [B, T, in] -> [B, T, out]."""

    def __init__(self, width_in: int, width_out: int, kernel: int, *, rngs: nnx.Rngs):
        self.taps = kernel
        self.linear = Linear(kernel * width_in, width_out, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.taps // 2
        padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
        window = [padded[:, tap : tap + x.shape[1]] for tap in range(self.taps)]
        return self.linear(jnp.concatenate(window, axis=-1))


class ConvNeXtBlock(nnx.Module):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, mlp: int, kernel: int, scale: float, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(kernel**-0.5)
        self.depthwise = nnx.Param(init(rngs.params(), (kernel, width)))
        self.depthwise_bias = nnx.Param(jnp.zeros((width,)))
        self.norm = LayerNorm(width)
        self.up = Linear(width, mlp, bias=True, rngs=rngs)
        self.down = Linear(mlp, width, bias=True, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full((width,), scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = depthwise_conv(x, self.depthwise[...], self.depthwise_bias[...])
        h = self.down(jax.nn.gelu(self.up(self.norm(h))))
        return x + self.layer_scale[...] * h


class ConvNeXt(nnx.Module):
    """A scanned stack of blocks. Padded positions (mask 0) stay zero, so that what lies behind
    the end of one row never depends on how long the other rows of its batch are.

    Attributes:
      lookahead: positions of future input that one output depends on.
    """

    def __init__(self, width: int, mlp: int, layers: int, kernel: int = 7, *, rngs: nnx.Rngs):
        self.lookahead = layers * (kernel // 2)
        self.layers = stack(
            lambda rngs: ConvNeXtBlock(width, mlp, kernel, 1.0 / layers, rngs=rngs), layers, rngs
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, T, D], mask [B, T] of 0 and 1 -> [B, T, D]."""
        keep = mask[..., None].astype(x.dtype)
        return scan_layers(self.layers, lambda block, h, _: (block(h) * keep, None), x * keep)[0]
