"""Stages of the convolutional nets of DAC and SNAC: residual units with Snake activations around
a strided convolution (Kumar et al. 2023, arXiv 2306.06546 §3.1). Not causal; zeros at the ends.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from slm_jax.nn.codec_conv import CodecConv, CodecTranspose, Snake, Span, symmetric
from slm_jax.nn.streaming import Run

_KERNEL = 7
_DILATIONS = (1, 3, 9)


def wide_conv(
    inputs: int,
    outputs: int,
    *,
    kernel: int = _KERNEL,
    dilation: int = 1,
    depthwise: bool = False,
    rngs: nnx.Rngs,
) -> CodecConv:
    """One that keeps the number of positions; `kernel` is odd."""
    padding = symmetric(kernel // 2 * dilation)
    return CodecConv(
        inputs, outputs, kernel, padding, dilation=dilation, depthwise=depthwise, rngs=rngs
    )


class ResidualUnit(nnx.Module):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, dilation: int, depthwise: bool, *, rngs: nnx.Rngs):
        self.snake1 = Snake(width)
        self.conv1 = wide_conv(width, width, dilation=dilation, depthwise=depthwise, rngs=rngs)
        self.snake2 = Snake(width)
        self.conv2 = wide_conv(width, width, kernel=1, rngs=rngs)

    def __call__(self, x: jax.Array, run: Run) -> jax.Array:
        h = run(self.conv1, self.snake1(x))
        return x + run(self.conv2, self.snake2(h))


class DownStage(nnx.Module):
    """Units, then a strided convolution: [B, T, D] -> [B, about T / ratio, 2 D]."""

    def __init__(self, width: int, ratio: int, depthwise: bool = False, *, rngs: nnx.Rngs):
        self.units = _units(width, depthwise, rngs)
        self.snake = Snake(width)
        padding = symmetric(-(-ratio // 2))
        self.down = CodecConv(width, 2 * width, 2 * ratio, padding, stride=ratio, rngs=rngs)

    def __call__(self, x: jax.Array, run: Run) -> jax.Array:
        for unit in self.units:
            x = unit(x, run)
        return run(self.down, self.snake(x))

    def field(self, first: int, last: int) -> Span:
        """The input positions that output positions first to last depend on."""
        return _units_field(self.units, self.down.field(first, last))


class UpStage(nnx.Module):
    """A transposed convolution, then units: [B, T, D] -> [B, about T * ratio, D / 2].

    Args:
      exact: whether T positions give T * ratio; otherwise an odd ratio gives one less.
      after: layer between the convolution and the units, if any.
    """

    def __init__(
        self,
        width: int,
        ratio: int,
        depthwise: bool = False,
        exact: bool = False,
        after: nnx.Module | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        left = -(-ratio // 2)
        trim = (left, ratio - left if exact else left)
        self.snake = Snake(width)
        self.up = CodecTranspose(width, width // 2, 2 * ratio, trim, stride=ratio, rngs=rngs)
        self.after = after
        self.units = _units(width // 2, depthwise, rngs)

    def __call__(self, x: jax.Array, run: Run, *after: Any) -> jax.Array:
        """`after`: further arguments of the layer of that name."""
        x = run(self.up, self.snake(x))
        if self.after is not None:
            x = self.after(x, *after)
        for unit in self.units:
            x = unit(x, run)
        return x

    def field(self, first: int, last: int) -> Span:
        """The input positions that output positions first to last depend on."""
        return self.up.field(*_units_field(self.units, Span(first, last)))


def _units_field(units: nnx.List, span: Span) -> Span:
    for unit in units:  # the order does not matter: none of them has a stride
        span = unit.conv1.field(*span)
    return span


def _units(width: int, depthwise: bool, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(ResidualUnit(width, dilation, depthwise, rngs=rngs) for dilation in _DILATIONS)
