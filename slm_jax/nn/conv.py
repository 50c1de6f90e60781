"""1-D convolutions over [B, T, D], with a bounded, declared look-ahead.

ConvNeXt blocks (Liu et al. 2022, arXiv 2201.03545, eq.-free; 1-D as in Vocos, arXiv 2306.00814):
depthwise convolution, LayerNorm, pointwise expansion, GELU, pointwise projection, layer scale.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import LayerNorm, Linear, scan_layers, stack


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def depthwise_conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, causal: bool = False
) -> jax.Array:
    """x [B, T, D], kernel [k, D] with k odd, bias [D] -> [B, T, D], zero padded on both sides, or
    all on the left.

    A sum of shifted products: XLA:CPU runs grouped convolutions, and above all their gradients,
    many times slower than these fused multiplications. The gradient is written out, because the one
    derived from the sum pads and adds once a tap instead of in one pass.
    """
    left, right = _margins(kernel, causal)
    return _shifted_sum(jnp.pad(x, ((0, 0), (left, right), (0, 0))), kernel) + bias


def _margins(kernel: jax.Array, causal: bool) -> tuple[int, int]:
    taps = kernel.shape[0]
    return (taps - 1, 0) if causal else (taps // 2, taps // 2)


def _shifted_sum(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """padded [B, T + k - 1, D] -> [B, T, D]."""
    taps = kernel.shape[0]
    count = padded.shape[1] - taps + 1
    return sum(padded[:, tap : tap + count] * kernel[tap] for tap in range(taps))


def _depthwise_forward(x, kernel, bias, causal):
    return depthwise_conv(x, kernel, bias, causal), (x, kernel)


def _depthwise_backward(causal, kept, grad):
    x, kernel = kept
    left, right = _margins(kernel, causal)
    to_x = _shifted_sum(jnp.pad(grad, ((0, 0), (right, left), (0, 0))), kernel[::-1])
    padded, count = jnp.pad(x, ((0, 0), (left, right), (0, 0))), x.shape[1]
    taps = range(kernel.shape[0])
    to_kernel = jnp.stack([jnp.sum(padded[:, t : t + count] * grad, (0, 1)) for t in taps])
    return to_x, to_kernel, grad.sum((0, 1))


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


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

    def __init__(
        self, width: int, mlp: int, kernel: int, scale: float, causal: bool, *, rngs: nnx.Rngs
    ):
        self.causal = causal
        init = nnx.initializers.normal(kernel**-0.5)
        self.depthwise = nnx.Param(init(rngs.params(), (kernel, width)))
        self.depthwise_bias = nnx.Param(jnp.zeros((width,)))
        self.norm = LayerNorm(width)
        self.up = Linear(width, mlp, bias=True, rngs=rngs)
        self.down = Linear(mlp, width, bias=True, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full((width,), scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = depthwise_conv(x, self.depthwise[...], self.depthwise_bias[...], self.causal)
        return x + self._mix(h)

    def step(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One position of a causal block: x [B, D] and the k - 1 before it [B, k - 1, D] -> the
        output [B, D] and the k - 1 before the next position."""
        window = jnp.concatenate([before, x[:, None]], axis=1)
        h = jnp.einsum("bkd,kd->bd", window, self.depthwise[...]) + self.depthwise_bias[...]
        return x + self._mix(h), window[:, 1:]

    def _mix(self, h: jax.Array) -> jax.Array:
        return self.layer_scale[...] * self.down(jax.nn.gelu(self.up(self.norm(h))))


class ConvNeXt(nnx.Module):
    """A scanned stack of blocks. Padded positions (mask 0) stay zero, so that what lies behind
    the end of one row never depends on how long the other rows of its batch are.

    Attributes:
      lookahead: positions of future input that one output depends on.
    """

    def __init__(
        self,
        width: int,
        mlp: int,
        layers: int,
        kernel: int = 7,
        causal: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.lookahead = 0 if causal else layers * (kernel // 2)
        self.width, self.kernel, self.depth = width, kernel, layers
        self.layers = stack(
            lambda rngs: ConvNeXtBlock(width, mlp, kernel, 1.0 / layers, causal, rngs=rngs),
            layers,
            rngs,
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, T, D], mask [B, T] of 0 and 1 -> [B, T, D]."""
        keep = mask[..., None].astype(x.dtype)
        return scan_layers(self.layers, lambda block, h, _: (block(h) * keep, None), x * keep)[0]

    def start(self, rows: int) -> jax.Array:
        """What a causal stack remembers before the first position: [layers, B, k - 1, D]."""
        return jnp.zeros((self.depth, rows, self.kernel - 1, self.width))

    def step(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One position of a causal stack: x [B, D], `before` of `start` or of the last step."""
        return scan_layers(self.layers, lambda block, h, past: block.step(h, past), x, before)
