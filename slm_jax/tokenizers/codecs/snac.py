"""SNAC, the multi-scale codec (Siuzdak et al. 2024, arXiv 2410.14411): DAC's convolutions, mostly
depthwise, local attention, and a residual quantiser whose coarse levels are slower.

Same function as SNAC of the `snac` package (1.2), but for the decoder's noise, which is the same in
every call here: what a codec says depends on its codes alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.interop import codec_names
from slm_jax.interop import codecs as checkpoints
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.codec_conv import Snake, Span
from slm_jax.nn.layers import LayerNorm, Linear
from slm_jax.nn.rope import inverse_frequencies, rotate
from slm_jax.nn.streaming import Rows, Run
from slm_jax.tokenizers.chunked import Blocks, reach
from slm_jax.tokenizers.codecs.codec import (
    Codec,
    build,
    choose_levels,
    codec_spec,
    keep,
    own,
    whole_frames,
)
from slm_jax.tokenizers.codecs.rvq import FactorisedCodebooks
from slm_jax.tokenizers.codecs.snake_net import DownStage, UpStage, wide_conv

_HEAD_DIM = 64  # of LocalMHA, in every published model


@dataclasses.dataclass(frozen=True)
class SnacConfig:
    """Sizes; the default is that of the published one for 24 kHz.

    Attributes:
      sample_rate: in Hz.
      filters: width at the audio rate in the encoder; it doubles with each stride.
      ratios, decoder_ratios: strides of encoder and decoder in order.
      decoder_width: before the decoder's first stage; it halves with each stride.
      window: latents that attend to each other; None without attention.
      strides: latents that one code of each level stands for; each divides the first.
      codes, code_width: of the quantiser.
      noise: whether the decoder adds noise after its transposed convolutions.
      depthwise: whether the wide convolutions are.
    """

    sample_rate: int = 24_000
    filters: int = 48
    ratios: tuple[int, ...] = (2, 4, 8, 8)
    decoder_width: int = 1024
    decoder_ratios: tuple[int, ...] = (8, 8, 4, 2)
    window: int | None = None
    strides: tuple[int, ...] = (4, 2, 1)
    codes: int = 4096
    code_width: int = 8
    noise: bool = True
    depthwise: bool = True

    @property
    def hop(self) -> int:
        """Samples of one latent."""
        return math.prod(self.ratios)

    @property
    def frame(self) -> int:
        """Samples of one frame: of one code of the coarsest level."""
        return self.hop * self.strides[0]

    @property
    def block(self) -> int:
        """Latents that a row is padded to a multiple of: whole frames and whole windows."""
        return math.lcm(self.strides[0], self.window or 1)

    @property
    def width(self) -> int:
        """Of the latents."""
        return self.filters * 2 ** len(self.ratios)

    @property
    def counts(self) -> tuple[int, ...]:
        """Codes of each level in one frame, coarse level first."""
        return tuple(self.strides[0] // stride for stride in self.strides)


class LocalAttention(nnx.Module):
    """Attention within windows that do not overlap: [B, T, D] -> [B, T, D], T whole windows."""

    def __init__(self, width: int, window: int, *, rngs: nnx.Rngs):
        self.window = window
        self.norm = LayerNorm(width)
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        windows = x.reshape(-1, self.window, x.shape[-1])
        q, k, v = (
            part.reshape(*part.shape[:2], -1, _HEAD_DIM)
            for part in jnp.split(self.qkv(self.norm(windows)), 3, axis=-1)
        )
        positions = jnp.arange(self.window)[None]
        frequencies = inverse_frequencies(_HEAD_DIM, 10_000.0, None)
        q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        return x + self.out(attention(q, k, v, MaskSpec()).reshape(x.shape))

    def field(self, first: int, last: int) -> Span:
        """The positions that positions first to last depend on."""
        return Span(first - first % self.window, last + -(last + 1) % self.window)


class Noise(nnx.Module):
    """x + (x kernel) * noise, with one noise for all channels and rows."""

    def __init__(self, width: int, stage: int, *, rngs: nnx.Rngs):
        self.linear = Linear(width, width, rngs=rngs)
        self.stage = stage

    def __call__(self, x: jax.Array, start: jax.Array | int) -> jax.Array:
        return x + self.linear(x) * decoder_noise(self.stage, x.shape[1], start)[:, None]


def decoder_noise(stage: int, count: int, start: jax.Array | int = 0) -> jax.Array:
    """The Gaussian noise [count] of a decoder's stage from position `start` of a row on: a function
    of the position, so that any part of a row gets its own."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(stage), start + jnp.arange(count))
    return jax.vmap(jax.random.normal)(keys)


class SnacEncoder(nnx.Module):
    """Audio [B, n, 1] -> latents [B, n / hop, width]."""

    def __init__(self, config: SnacConfig, *, rngs: nnx.Rngs):
        self.first = wide_conv(1, config.filters, rngs=rngs)
        self.stages = nnx.List(
            DownStage(config.filters * 2**i, ratio, config.depthwise, rngs=rngs)
            for i, ratio in enumerate(config.ratios)
        )
        width, window = config.width, config.window
        self.attention = LocalAttention(width, window, rngs=rngs) if window else None
        self.last = wide_conv(width, width, depthwise=config.depthwise, rngs=rngs)

    def __call__(self, audio: jax.Array, run: Run) -> jax.Array:
        x = run(self.first, audio)
        for stage in self.stages:
            x = stage(x, run)
        if self.attention is not None:
            x = self.attention(x)
        return run(self.last, x)

    def field(self, first: int, last: int) -> Span:
        """The samples that latents first to last depend on."""
        span = self.last.field(first, last)
        if self.attention is not None:
            span = self.attention.field(*span)
        for stage in reversed(self.stages):
            span = stage.field(*span)
        return self.first.field(*span)


class SnacDecoder(nnx.Module):
    """Latents [B, T, width] -> audio [B, T * hop, 1]."""

    def __init__(self, config: SnacConfig, *, rngs: nnx.Rngs):
        width, stages = config.decoder_width, len(config.decoder_ratios)
        inner = config.width if config.depthwise else width
        self.first = wide_conv(config.width, inner, depthwise=config.depthwise, rngs=rngs)
        widen = config.depthwise
        self.widen = wide_conv(inner, width, kernel=1, rngs=rngs) if widen else None
        window = config.window
        self.attention = LocalAttention(width, window, rngs=rngs) if window else None
        self.stages = nnx.List(
            UpStage(
                width // 2**i,
                ratio,
                config.depthwise,
                exact=True,
                after=Noise(width // 2 ** (i + 1), i, rngs=rngs) if config.noise else None,
                rngs=rngs,
            )
            for i, ratio in enumerate(config.decoder_ratios)
        )
        self.snake = Snake(width // 2**stages)
        self.last = wide_conv(width // 2**stages, 1, rngs=rngs)

    def __call__(self, latents: jax.Array, run: Run, start: jax.Array | int) -> jax.Array:
        """Latents, the first of which is latent `start` of its row."""
        x = run(self.first, latents)
        if self.widen is not None:
            x = run(self.widen, x)
        if self.attention is not None:
            x = self.attention(x)
        for stage in self.stages:
            start *= stage.up.stride
            x = stage(x, run, start)
        return jnp.tanh(run(self.last, self.snake(x)))

    def field(self, first: int, last: int) -> Span:
        """The latents that samples first to last depend on."""
        span = self.last.field(first, last)
        for stage in reversed(self.stages):
            span = stage.field(*span)
        if self.attention is not None:
            span = self.attention.field(*span)
        return self.first.field(*span)


class SnacNetwork(nnx.Module):
    """Both halves and the quantiser."""

    def __init__(self, config: SnacConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = SnacEncoder(config, rngs=rngs)
        self.quantizer = FactorisedCodebooks(
            config.strides, config.codes, config.width, config.code_width, rngs=rngs
        )
        self.decoder = SnacDecoder(config, rngs=rngs)

    def encode(
        self, audio: jax.Array, lengths: jax.Array, levels: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Codec.encode`; codes of the first `levels` levels."""
        config = self.config
        audio, lengths = whole_frames(audio, lengths, config.hop * config.block)
        latents = self.encoder(audio[..., None], Rows(lengths))
        codes = self.quantizer.encode(latents, levels)
        frames = lengths // config.frame
        return keep(join_levels(codes), frames), frames

    def decode(self, codes: jax.Array, frames: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """See `Codec.decode`, and `Snac.decode_at`."""
        slowest = self.config.strides[0]
        rows = Rows(frames * slowest)
        latents = self.quantizer.decode(split_levels(codes, self.config.counts))
        return keep(self.decoder(latents, rows, start * slowest)[..., 0], rows.lengths)


class Snac(Codec):
    """SNAC with its weights.

    A frame lasts as long as one code of the coarsest level, and has K = sum(counts) codes: that
    one, then those of the next level in order of time, and so on. `split_levels` takes them apart.

    Attributes:
      counts: codes of each level written in one frame; (1, 2, 4) in the published model for 24 kHz.
      blocks: of as many frames as attention needs, for streams (`tokenizers.chunked`).
    """

    def __init__(self, network: SnacNetwork, levels: int):
        config, counts = network.config, network.config.counts[:levels]
        ends = range(config.strides[0] - 1, config.block, config.strides[0])
        ahead = [network.encoder.field(end, end).last + 1 - (end + 1) * config.hop for end in ends]
        samples, count = config.block * config.hop, config.block // config.strides[0]
        heard = reach(network.encoder.field(0, config.block - 1), samples)
        latents = reach(network.decoder.field(0, samples - 1), config.block)
        before, after = (part // config.strides[0] for part in latents)
        self.blocks = Blocks(samples, count, heard, (before, after))
        spec = codec_spec(
            "snac",
            network,
            (config.codes,) * sum(counts),
            config.sample_rate / config.frame,
            lookahead=max(ahead) / config.sample_rate,
        )
        super().__init__(network, spec, config.sample_rate, levels=levels)
        self.counts, self.fewest = counts, spec.levels

    def decode_at(self, codes: jax.Array, frames: jax.Array, start: int) -> jax.Array:
        """`decode` of rows cut out of longer ones, where they begin at frame `start`: the decoder's
        noise is that of the place."""
        self.check_codes(codes, frames)
        return self._decode(*(own(x, jnp.int32) for x in (codes, frames, start)))

    @classmethod
    def load(cls, folder: Path | str, levels: int | None = None) -> Snac:
        """Reads a folder in the format of hubertsiuzdak/snac_24khz: config.json, and the tensors
        of pytorch_model.bin as safetensors.

        Args:
          folder: where they are.
          levels: how many levels to write, the slow ones; all if None. The published models were
            not trained to do with fewer.

        Raises:
          UserError: a file is missing, or it holds no (whole) SNAC.
        """
        checkpoint = checkpoints.read(folder, codec_names.SNAC)
        config = SnacConfig(**checkpoint.sizes)
        network = build(lambda: SnacNetwork(config, rngs=nnx.Rngs(0)), checkpoint.weights)
        return cls(network, choose_levels(levels, len(config.strides)))


def join_levels(levels: list[jax.Array]) -> jax.Array:
    """Codes of each level [B, T * count] -> [B, T, sum of counts]; the first has T codes."""
    frames = levels[0].shape[1]
    return jnp.concatenate([x.reshape(x.shape[0], frames, -1) for x in levels], axis=-1)


def split_levels(codes: jax.Array, counts: tuple[int, ...]) -> list[jax.Array]:
    """Undoes `join_levels`, of all levels or the first ones."""
    ends = list(itertools.accumulate(counts))
    ends = ends[: ends.index(codes.shape[-1])]
    return [x.reshape(x.shape[0], -1) for x in jnp.split(codes, ends, axis=-1)]
