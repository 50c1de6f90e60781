"""SEANet encoder and decoder (Tagliasacchi et al. 2020, arXiv 2009.02095), as EnCodec and Mimi
have them: residual blocks and strided convolutions, with ELU before each of them.

The same functions as EncodecEncoder, EncodecDecoder, MimiEncoder and MimiDecoder of transformers.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.codec_conv import CodecConv, CodecTranspose, PadMode, causal, centred
from slm_jax.nn.streaming import Run


@dataclasses.dataclass(frozen=True)
class SeanetConfig:
    """Sizes; the default is Mimi's.

    Attributes:
      channels: of the audio.
      width: of the latents.
      filters: width at the audio rate; it doubles with each stride.
      residual_layers: blocks before each stride, dilated by powers of `dilation_growth`.
      ratios: strides of the decoder in order; the encoder has them in reverse.
      kernel, last_kernel, residual_kernel: of the first, the last, and the blocks' convolutions.
      compress: how many times narrower a block is inside.
      shortcut: whether the way around a block is a convolution of kernel 1.
      pad_mode: of every convolution.
      causal: whether no convolution looks ahead; otherwise they look ahead and back alike.
      norm: whether a `TimeNorm` follows every convolution.
    """

    channels: int = 1
    width: int = 512
    filters: int = 64
    residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    dilation_growth: int = 2
    compress: int = 2
    shortcut: bool = False
    pad_mode: PadMode = "constant"
    causal: bool = True
    norm: bool = False

    @property
    def hop(self) -> int:
        """Samples for each latent."""
        return math.prod(self.ratios)

    @property
    def widest(self) -> int:
        return self.filters * 2 ** len(self.ratios)

    @property
    def first_frames(self) -> int:
        """Latents that the first chunk of a stream must have to be mirrored at its start: at every
        rate more positions than the longest padding there. 1 if nothing is mirrored."""
        if self.pad_mode != "reflect":
            return 1
        blocks = (self.residual_kernel - 1) * self.dilation_growth ** (self.residual_layers - 1)
        rates = [math.prod(self.ratios[:i]) for i in range(len(self.ratios) + 1)]  # per latent
        paddings = [(rate, blocks) for rate in rates[1:]]
        paddings += [(rate, stride) for rate, stride in zip(rates[1:], self.ratios, strict=True)]
        ends = max(self.kernel, self.last_kernel) - 1
        return max(padding // rate + 1 for rate, padding in [*paddings, (1, ends)])


class TimeNorm(nnx.Module):
    """(x - mean) / std * scale + bias, over all positions and channels of a row that has no padding
    (GroupNorm with one group)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
        x *= jax.lax.rsqrt(jnp.mean(x**2, axis=(1, 2), keepdims=True) + 1e-5)
        return x * self.scale[...] + self.bias[...]


class NormedConv(nnx.Module):
    """A convolution and a norm, after which `trim` positions are cut at the two ends."""

    def __init__(
        self, layer: CodecConv | CodecTranspose, width: int, trim: tuple[int, int] = (0, 0)
    ):
        self.conv, self.norm, self.trim = layer, TimeNorm(width), trim

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D], of which all positions count."""
        y, lengths = self.conv(x, lengths)
        left, right = self.trim
        return self.norm(y)[:, left : y.shape[1] - right], lengths - left - right


def conv(
    config: SeanetConfig,
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    rngs: nnx.Rngs,
) -> CodecConv | NormedConv:
    padding = (causal if config.causal else centred)(kernel, stride, dilation, config.pad_mode)
    layer = CodecConv(inputs, outputs, kernel, padding, stride=stride, dilation=dilation, rngs=rngs)
    return NormedConv(layer, outputs) if config.norm else layer


def transposed(
    config: SeanetConfig, inputs: int, outputs: int, ratio: int, *, rngs: nnx.Rngs
) -> CodecTranspose | NormedConv:
    """T positions become T * ratio."""
    trim = (0, ratio) if config.causal else (ratio - ratio // 2, ratio // 2)
    early = (0, 0) if config.norm else trim  # the norm sees what is cut
    layer = CodecTranspose(inputs, outputs, 2 * ratio, early, stride=ratio, rngs=rngs)
    return NormedConv(layer, outputs, trim) if config.norm else layer


class ResidualBlock(nnx.Module):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, config: SeanetConfig, width: int, dilation: int, *, rngs: nnx.Rngs):
        inner, kernel = width // config.compress, config.residual_kernel
        self.first = conv(config, width, inner, kernel, dilation=dilation, rngs=rngs)
        self.second = conv(config, inner, width, 1, rngs=rngs)
        self.shortcut = conv(config, width, width, 1, rngs=rngs) if config.shortcut else None

    def __call__(self, x: jax.Array, run: Run) -> jax.Array:
        h = run(self.first, jax.nn.elu(x))
        h = run(self.second, jax.nn.elu(h))
        return h + (x if self.shortcut is None else run(self.shortcut, x))


class EncoderStage(nnx.Module):
    """Blocks, then a strided convolution: [B, T, D] -> [B, ceil(T / ratio), 2 D]."""

    def __init__(self, config: SeanetConfig, width: int, ratio: int, *, rngs: nnx.Rngs):
        self.blocks = _blocks(config, width, rngs)
        self.down = conv(config, width, 2 * width, 2 * ratio, stride=ratio, rngs=rngs)

    def __call__(self, x: jax.Array, run: Run) -> jax.Array:
        for block in self.blocks:
            x = block(x, run)
        return run(self.down, jax.nn.elu(x))


class DecoderStage(nnx.Module):
    """A transposed convolution, then blocks: [B, T, D] -> [B, T * ratio, D / 2]."""

    def __init__(self, config: SeanetConfig, width: int, ratio: int, *, rngs: nnx.Rngs):
        half = width // 2
        self.up = transposed(config, width, half, ratio, rngs=rngs)
        self.blocks = _blocks(config, half, rngs)

    def __call__(self, x: jax.Array, run: Run) -> jax.Array:
        x = run(self.up, jax.nn.elu(x))
        for block in self.blocks:
            x = block(x, run)
        return x


class SeanetEncoder(nnx.Module):
    """Audio [B, n, channels] -> latents [B, ceil(n / hop), width].

    Args:
      lstm: layer between the stages and the last convolution, which EnCodec has.
    """

    def __init__(self, config: SeanetConfig, lstm: nnx.Module | None = None, *, rngs: nnx.Rngs):
        self.first = conv(config, config.channels, config.filters, config.kernel, rngs=rngs)
        self.stages = nnx.List(
            EncoderStage(config, config.filters * 2**i, ratio, rngs=rngs)
            for i, ratio in enumerate(reversed(config.ratios))
        )
        self.lstm = lstm
        self.last = conv(config, config.widest, config.width, config.last_kernel, rngs=rngs)

    def __call__(self, audio: jax.Array, run: Run) -> jax.Array:
        x = run(self.first, audio)
        for stage in self.stages:
            x = stage(x, run)
        if self.lstm is not None:
            x = run(self.lstm, x)
        return run(self.last, jax.nn.elu(x))


class SeanetDecoder(nnx.Module):
    """Latents [B, T, width] -> audio [B, T * hop, channels].

    Args:
      lstm: layer after the first convolution, which EnCodec has.
    """

    def __init__(self, config: SeanetConfig, lstm: nnx.Module | None = None, *, rngs: nnx.Rngs):
        self.first = conv(config, config.width, config.widest, config.kernel, rngs=rngs)
        self.lstm = lstm
        self.stages = nnx.List(
            DecoderStage(config, config.widest // 2**i, ratio, rngs=rngs)
            for i, ratio in enumerate(config.ratios)
        )
        self.last = conv(config, config.filters, config.channels, config.last_kernel, rngs=rngs)

    def __call__(self, latents: jax.Array, run: Run) -> jax.Array:
        x = run(self.first, latents)
        if self.lstm is not None:
            x = run(self.lstm, x)
        for stage in self.stages:
            x = stage(x, run)
        return run(self.last, jax.nn.elu(x))


def _blocks(config: SeanetConfig, width: int, rngs: nnx.Rngs) -> nnx.List:
    dilations = [config.dilation_growth**i for i in range(config.residual_layers)]
    return nnx.List(ResidualBlock(config, width, dilation, rngs=rngs) for dilation in dilations)
