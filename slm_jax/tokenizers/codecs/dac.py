"""DAC, the Descript audio codec (Kumar et al. 2023, arXiv 2306.06546): convolutions with Snake
activations and a residual quantiser with factorised codes. Same function as DacModel of
transformers, on audio that is padded to whole frames as DacFeatureExtractor does.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.interop import codec_names
from slm_jax.interop import codecs as checkpoints
from slm_jax.nn.codec_conv import Snake, Span
from slm_jax.nn.streaming import Rows, Run
from slm_jax.tokenizers.chunked import Blocks, reach
from slm_jax.tokenizers.codecs.codec import (
    Codec,
    build,
    choose_levels,
    codec_spec,
    keep,
    whole_frames,
)
from slm_jax.tokenizers.codecs.rvq import FactorisedCodebooks
from slm_jax.tokenizers.codecs.snake_net import DownStage, UpStage, wide_conv


@dataclasses.dataclass(frozen=True)
class DacConfig:
    """Sizes; the default is that of the published one for 44.1 kHz.

    Attributes:
      sample_rate: in Hz.
      filters: width at the audio rate in the encoder; it doubles with each stride.
      ratios: strides of the encoder in order; the decoder has them in reverse.
      decoder_width: after the decoder's first convolution; it halves with each stride.
      levels, codes, code_width: of the quantiser.
    """

    sample_rate: int = 44_100
    filters: int = 64
    ratios: tuple[int, ...] = (2, 4, 8, 8)
    decoder_width: int = 1536
    levels: int = 9
    codes: int = 1024
    code_width: int = 8

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return math.prod(self.ratios)

    @property
    def width(self) -> int:
        """Of the latents."""
        return self.filters * 2 ** len(self.ratios)


class DacEncoder(nnx.Module):
    """Audio [B, n, 1] -> latents [B, n / hop, width]."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.first = wide_conv(1, config.filters, rngs=rngs)
        self.stages = nnx.List(
            DownStage(config.filters * 2**i, ratio, rngs=rngs)
            for i, ratio in enumerate(config.ratios)
        )
        self.snake = Snake(config.width)
        self.last = wide_conv(config.width, config.width, kernel=3, rngs=rngs)

    def __call__(self, audio: jax.Array, run: Run) -> jax.Array:
        x = run(self.first, audio)
        for stage in self.stages:
            x = stage(x, run)
        return run(self.last, self.snake(x))

    def field(self, first: int, last: int) -> Span:
        """The samples that frames first to last depend on."""
        span = self.last.field(first, last)
        for stage in reversed(self.stages):
            span = stage.field(*span)
        return self.first.field(*span)


class DacDecoder(nnx.Module):
    """Latents [B, T, width] -> audio [B, n, 1]; n is T * hop, or a little less with odd ratios."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        width, stages = config.decoder_width, len(config.ratios)
        self.first = wide_conv(config.width, width, rngs=rngs)
        self.stages = nnx.List(
            UpStage(width // 2**i, ratio, rngs=rngs)
            for i, ratio in enumerate(reversed(config.ratios))
        )
        self.snake = Snake(width // 2**stages)
        self.last = wide_conv(width // 2**stages, 1, rngs=rngs)

    def __call__(self, latents: jax.Array, run: Run) -> jax.Array:
        x = run(self.first, latents)
        for stage in self.stages:
            x = stage(x, run)
        return jnp.tanh(run(self.last, self.snake(x)))

    def field(self, first: int, last: int) -> Span:
        """The frames that samples first to last depend on."""
        span = self.last.field(first, last)
        for stage in reversed(self.stages):
            span = stage.field(*span)
        return self.first.field(*span)


class DacNetwork(nnx.Module):
    """Both halves and the quantiser."""

    def __init__(self, config: DacConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = DacEncoder(config, rngs=rngs)
        self.quantizer = FactorisedCodebooks(
            (1,) * config.levels, config.codes, config.width, config.code_width, rngs=rngs
        )
        self.decoder = DacDecoder(config, rngs=rngs)

    def encode(
        self, audio: jax.Array, lengths: jax.Array, levels: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Codec.encode`."""
        audio, lengths = whole_frames(audio, lengths, self.config.hop)
        rows = Rows(lengths)
        latents = self.encoder(audio[..., None], rows)
        codes = jnp.stack(self.quantizer.encode(latents, levels), axis=-1)
        return keep(codes, rows.lengths), rows.lengths

    def decode(self, codes: jax.Array, frames: jax.Array) -> jax.Array:
        """See `Codec.decode`."""
        rows = Rows(frames)
        latents = self.quantizer.decode(list(jnp.moveaxis(codes, -1, 0)))
        return keep(self.decoder(latents, rows)[..., 0], rows.lengths)


class Dac(Codec):
    """DAC with its weights.

    Attributes:
      blocks: frames, for streams (`tokenizers.chunked`).
    """

    def __init__(self, network: DacNetwork, levels: int):
        config, hop = network.config, network.config.hop
        heard = network.encoder.field(0, 0)
        sounded = reach(network.decoder.field(0, hop - 1), 1)
        self.blocks = Blocks(hop, 1, reach(heard, hop), sounded)
        spec = codec_spec(
            "dac",
            network,
            (config.codes,) * levels,
            config.sample_rate / hop,
            lookahead=(heard.last + 1 - hop) / config.sample_rate,
        )
        super().__init__(network, spec, config.sample_rate, levels=levels)

    def decode_at(self, codes: jax.Array, frames: jax.Array, start: int) -> jax.Array:
        """See `chunked.BlockCodec`: it sounds alike everywhere."""
        return self.decode(codes, frames)

    @classmethod
    def load(cls, folder: Path | str, levels: int | None = None) -> Dac:
        """Reads a folder in the format of descript/dac_44khz: config.json and safetensors.

        Args:
          folder: where they are.
          levels: how many levels to write, the coarse ones; all if None.

        Raises:
          UserError: a file is missing, or it holds no (whole) DAC.
        """
        checkpoint = checkpoints.read(folder, codec_names.DAC)
        config = DacConfig(**checkpoint.sizes)
        network = build(lambda: DacNetwork(config, rngs=nnx.Rngs(0)), checkpoint.weights)
        return cls(network, choose_levels(levels, config.levels))
