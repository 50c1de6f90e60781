"""Strided convolutions of neural codecs over [B, T, D], and their exact streaming.

Whole rows: a row of a padded batch gives what it gives alone, because whatever lies beyond its
length is replaced by the padding that it would have got there. Streaming (causal ones): the state
holds the inputs that the next chunk still sees.

Same functions as EncodecConv1d and EncodecConvTranspose1d of transformers (SEANet, Tagliasacchi et
al. 2020, arXiv 2009.02095) and as the padded convolutions of DAC (Kumar et al. 2023,
arXiv 2306.06546).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import LECUN_NORMAL

# Of sin(x) / x in x^2, the highest power first; the next is below 1e-7 up to pi / 2.
_SERIES = tuple((-1) ** n / math.factorial(2 * n + 1) for n in reversed(range(6)))

PadMode = Literal["constant", "replicate", "reflect"]
Count = TypeVar("Count", int, jax.Array)


class Span(NamedTuple):
    """First and last of some positions; before the row if negative."""

    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Padding:
    """What a convolution sees beyond the ends of a row.

    Attributes:
      left, right: positions.
      mode: zeros; the value at the end; or the row mirrored at its end, to which end a row that is
        too short is first given zeros on the right.
      whole: the right side is padded further until the last stride is complete, so that T
        positions give ceil(T / stride); otherwise positions too few for a window are dropped.
    """

    left: int
    right: int
    mode: PadMode = "constant"
    whole: bool = False


def causal(kernel: int, stride: int = 1, dilation: int = 1, mode: PadMode = "constant") -> Padding:
    """Everything on the left: an output sees nothing after the end of its own stride."""
    return Padding((kernel - 1) * dilation + 1 - stride, 0, mode, whole=True)


def centred(kernel: int, stride: int = 1, dilation: int = 1, mode: PadMode = "constant") -> Padding:
    """Half on each side, the odd one on the left."""
    total = (kernel - 1) * dilation + 1 - stride
    return Padding(total - total // 2, total // 2, mode, whole=True)


def symmetric(each: int) -> Padding:
    """So many zeros on each side."""
    return Padding(each, each)


class ConvState(NamedTuple):
    """Inputs [B, n, D] that the next chunk sees; started: bool [], False before the first."""

    before: jax.Array
    started: jax.Array


class CodecConv(nnx.Module):
    """[B, T, in] -> [B, T', out]; T' = `count(T)`.

    Depthwise ones have one filter a channel, kernel [k, D], and are a sum of shifted products,
    which XLA:CPU runs many times faster than its grouped convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        padding: Padding,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        if depthwise and inputs != outputs:
            raise ValueError(f"a depthwise convolution keeps its channels, not {inputs}->{outputs}")
        shape = (kernel, inputs) if depthwise else (kernel, inputs, outputs)
        self.kernel = nnx.Param(LECUN_NORMAL(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.inputs, self.padding = inputs, padding
        self.stride, self.dilation, self.depthwise = stride, dilation, depthwise
        self.extent = (kernel - 1) * dilation + 1

    def count(self, length: Count) -> Count:
        """Positions that come of `length` (int, or int array)."""
        if self.padding.whole:
            return -(-length // self.stride)
        padded = length + self.padding.left + self.padding.right
        return (padded - self.extent + self.stride) // self.stride

    def field(self, first: int, last: int) -> Span:
        """The input positions that output positions first to last depend on."""
        left = self.padding.left
        return Span(first * self.stride - left, last * self.stride - left + self.extent - 1)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, in], lengths int [B] -> [B, count(T), out] and count(lengths)."""
        y = self._convolve(pad_rows(x, lengths, self.padding, self.stride))
        return y[:, : self.count(x.shape[1])], self.count(lengths)

    def start(self, batch: int) -> ConvState:
        return ConvState(
            jnp.zeros((batch, self.padding.left, self.inputs)), jnp.zeros((), jnp.bool_)
        )

    def step(self, x: jax.Array, state: ConvState) -> tuple[jax.Array, ConvState]:
        """The next T positions of a causal convolution, T a multiple of the stride; with "reflect"
        the first chunk must be longer than the padding."""
        left = self.padding.left
        if self.padding.right or not self.padding.whole:
            raise ValueError("only causal convolutions stream")
        if x.shape[1] % self.stride:
            raise ValueError(f"a chunk must be a multiple of {self.stride}, got {x.shape[1]}")
        before = state.before
        if self.padding.mode != "constant":
            lengths = jnp.full(x.shape[:1], x.shape[1])
            head = pad_rows(x, lengths, self.padding, 1)[:, :left]
            before = jnp.where(state.started, before, head)
        window = jnp.concatenate([before, x], axis=1)
        kept = window[:, window.shape[1] - left :]
        return self._convolve(window), ConvState(kept, jnp.ones((), jnp.bool_))

    def _convolve(self, padded: jax.Array) -> jax.Array:
        kernel = self.kernel.astype(padded.dtype)
        if self.depthwise:
            span = padded.shape[1] - self.extent + 1
            taps = [padded[:, i * self.dilation :][:, :span] for i in range(kernel.shape[0])]
            y = sum(tap[:, :: self.stride] * kernel[i] for i, tap in enumerate(taps))
        else:
            y = jax.lax.conv_general_dilated(
                padded,
                kernel,
                (self.stride,),
                "VALID",
                rhs_dilation=(self.dilation,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
        return y if self.bias is None else y + self.bias.astype(y.dtype)


class CodecTranspose(nnx.Module):
    """Transposed convolution whose kernel is a whole number of strides long.

    [B, T, in] -> [B, (T - 1) * stride + kernel - trim, out]. Each input writes `kernel` outputs,
    `stride` after those of the input before; overlaps add. `trim` outputs are cut at the two ends;
    all of kernel - stride on the right makes it causal. Depthwise: kernel [k, D]; otherwise
    [in, k, out], so that all taps are one product and no weight is moved.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        trim: tuple[int, int],
        *,
        stride: int,
        depthwise: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        if kernel % stride:
            raise ValueError(f"the kernel ({kernel}) must be a multiple of the stride ({stride})")
        if depthwise and inputs != outputs:
            raise ValueError(f"a depthwise convolution keeps its channels, not {inputs}->{outputs}")
        shape = (kernel, inputs) if depthwise else (inputs, kernel, outputs)
        self.kernel = nnx.Param(LECUN_NORMAL(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.inputs, self.trim, self.stride, self.depthwise = inputs, trim, stride, depthwise
        self.taps = kernel

    def count(self, length: Count) -> Count:
        """Positions that come of `length` (int, or int array), if that is not 0."""
        return (length - 1) * self.stride + self.taps - sum(self.trim)

    def field(self, first: int, last: int) -> Span:
        """The input positions that output positions first to last depend on."""
        first, last = first + self.trim[0], last + self.trim[0]
        return Span(-((self.taps - 1 - first) // self.stride), last // self.stride)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, in], lengths int [B] -> [B, count(T), out] and count(lengths), 0 of 0."""
        y = self._spread(jnp.where(within(x, lengths), x, 0))
        y = y[:, self.trim[0] : y.shape[1] - self.trim[1]]
        return y, jnp.where(lengths > 0, self.count(lengths), 0)

    def start(self, batch: int) -> jax.Array:
        """The inputs whose outputs reach into the next chunk: [B, kernel / stride - 1, in]."""
        return jnp.zeros((batch, self.taps // self.stride - 1, self.inputs))

    def step(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next T inputs of a causal one -> [B, T * stride, out]."""
        if self.trim != (0, self.taps - self.stride):
            raise ValueError("only causal convolutions stream")
        window = jnp.concatenate([before, x], axis=1)
        begin = before.shape[1] * self.stride
        y = self._spread(window)[:, begin : begin + x.shape[1] * self.stride]
        return y, window[:, window.shape[1] - before.shape[1] :]

    def _spread(self, x: jax.Array) -> jax.Array:
        """[B, T, in] -> [B, (T - 1) * stride + kernel, out]."""
        kernel, blocks = self.kernel.astype(x.dtype), self.taps // self.stride
        sums = "bti,ki->btki" if self.depthwise else "bti,iko->btko"
        parts = jnp.einsum(sums, x, kernel)
        batch, count, _, outputs = parts.shape
        parts = parts.reshape(batch, count, blocks, self.stride, outputs)
        y = sum(
            jnp.pad(parts[:, :, i], ((0, 0), (i, blocks - 1 - i), (0, 0), (0, 0)))
            for i in range(blocks)
        ).reshape(batch, -1, outputs)
        return y if self.bias is None else y + self.bias.astype(y.dtype)


class Snake(nnx.Module):
    """x + sin(alpha x)^2 / alpha with an alpha for each channel (Ziyin et al. 2020,
    arXiv 2006.08195)."""

    def __init__(self, width: int):
        self.alpha = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        alpha = self.alpha.astype(x.dtype)
        return x + sin_squared(alpha * x) / (alpha + 1e-9)


def sin_squared(x: jax.Array) -> jax.Array:
    """sin(x)^2 to 5e-7: x less the nearest multiple of pi, and Taylor's series.

    XLA:CPU calls a scalar function for every sine; this it does with vectors, nine times as fast.
    """
    turns = jnp.round(x * (1 / math.pi))
    # Pi in two parts: few turns of the first, which has 8 bits, are exact.
    x = x - turns * 3.140625 - turns * (math.pi - 3.140625)
    x = jnp.clip(x, -math.pi / 2, math.pi / 2)  # many turns are not, and the series explodes
    square = x * x
    series = jnp.full_like(x, _SERIES[0])
    for factor in _SERIES[1:]:
        series = series * square + factor
    return (x * series) ** 2


def within(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """x [B, T, ...], lengths int [B] -> bool [B, T, 1, ...], True at the positions that count."""
    inside = jnp.arange(x.shape[1]) < lengths[:, None]
    return inside.reshape(*inside.shape, *(1,) * (x.ndim - 2))


def pad_rows(x: jax.Array, lengths: jax.Array, padding: Padding, stride: int) -> jax.Array:
    """Pads every row where it ends itself.

    Args:
      x: [B, T, D].
      lengths: int [B], positions that count.
      padding: of the convolution that follows.
      stride: its stride.

    Returns:
      [B, left + T + right + spare, D]; spare is stride - 1 when `padding.whole`, else 0. A row
      holds, after the left padding, `lengths` positions and at least as much padding as it needs.
    """
    left, right = padding.left, padding.right + (stride - 1 if padding.whole else 0)
    x = jnp.where(within(x, lengths), x, 0)
    if padding.mode == "constant":
        return jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    extra = -lengths % stride if padding.whole else jnp.zeros_like(lengths)
    reach = jnp.maximum(left, padding.right + extra)
    head = _beyond(x, lengths, jnp.arange(-left, 0)[None], padding.mode, reach)
    if not right:
        return jnp.concatenate([head, x], axis=1)
    tail = _beyond(x, lengths, lengths[:, None] + jnp.arange(right), padding.mode, reach)
    body = jnp.pad(x, ((0, 0), (0, right), (0, 0)))
    put = jax.vmap(lambda row, end, at: jax.lax.dynamic_update_slice_in_dim(row, end, at, 0))
    return jnp.concatenate([head, put(body, tail, lengths)], axis=1)


def _beyond(
    x: jax.Array, lengths: jax.Array, at: jax.Array, mode: PadMode, reach: jax.Array
) -> jax.Array:
    """What a row shows at positions `at` [B or 1, n] outside of it; reach [B]: its padding."""
    length = lengths[:, None]
    if mode == "replicate":
        source = jnp.clip(at, 0, length - 1)
    else:
        longest = jnp.maximum(length, reach[:, None] + 1)  # with zeros where the row is too short
        source = jnp.where(at < 0, -at, jnp.where(at < longest, at, 2 * (longest - 1) - at))
    values = jnp.take_along_axis(x, jnp.clip(source, 0, x.shape[1] - 1)[..., None], axis=1)
    return jnp.where((source < length)[..., None], values, 0)
