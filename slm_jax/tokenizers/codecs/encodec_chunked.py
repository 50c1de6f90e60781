"""EnCodec at 48 kHz (Défossez et al. 2022, arXiv 2210.13438 §3.1): chunks of a second that overlap
a little, each brought to unit power and coded by itself. Same function as EncodecModel of
transformers, on mono audio that is padded to whole chunks as EncodecFeatureExtractor does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.interop import codec_names
from slm_jax.interop import codecs as checkpoints
from slm_jax.nn.streaming import Rows
from slm_jax.tokenizers.checks import check_rows, check_vectors
from slm_jax.tokenizers.chunked import Blocks
from slm_jax.tokenizers.codecs.codec import Codec, build, choose_levels, codec_spec, keep, own
from slm_jax.tokenizers.codecs.encodec import EncodecConfig, EncodecNetwork
from slm_jax.tokenizers.codecs.seanet import SeanetConfig


@dataclasses.dataclass(frozen=True)
class ChunkedConfig(EncodecConfig):
    """Sizes; the default is the published one.

    Attributes:
      chunk: samples of a chunk.
      stride: samples from the start of a chunk to that of the next.
    """

    sample_rate: int = 48_000
    seanet: SeanetConfig = SeanetConfig(
        channels=2,
        width=128,
        filters=32,
        ratios=(8, 5, 4, 2),
        last_kernel=7,
        shortcut=True,
        pad_mode="reflect",
        causal=False,
        norm=True,
    )
    levels: int = 16
    chunk: int = 48_000
    stride: int = 47_520

    @property
    def chunk_frames(self) -> int:
        """Frames of codes of a chunk."""
        return -(-self.chunk // self.seanet.hop)


class ChunkedNetwork(EncodecNetwork):
    """EncodecNetwork over chunks; a mono signal is given to all channels, and they are averaged."""

    def encode(
        self, audio: jax.Array, lengths: jax.Array, levels: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `Codec.encode`."""
        config = self.config
        chunks = self._chunks(audio, lengths)
        count = chunks.shape[1]
        flat = (chunks / _power(chunks)).reshape(-1, config.chunk, 1)
        flat = jnp.broadcast_to(flat, (*flat.shape[:2], config.seanet.channels))
        latents = self.encoder(flat, Rows(jnp.full(len(flat), config.chunk)))
        codes = self.quantizer.encode(latents, levels)
        codes = codes.reshape(-1, count * config.chunk_frames, levels)
        frames = -(-lengths // config.stride) * config.chunk_frames
        return keep(codes, frames), frames

    def scales(self, audio: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `EncodecChunked.scales`."""
        return _power(self._chunks(audio, lengths))[..., 0]

    def decode(self, codes: jax.Array, frames: jax.Array, scales: jax.Array) -> jax.Array:
        """See `EncodecChunked.decode`."""
        config = self.config
        batch, slots, levels = codes.shape
        flat = codes.reshape(-1, config.chunk_frames, levels)
        rows = Rows(jnp.full(len(flat), config.chunk_frames))
        audio = self.decoder(self.quantizer.decode(flat), rows).mean(axis=-1)
        audio = audio.reshape(batch, slots // config.chunk_frames, -1) * scales[..., None]
        # Chunks fade into each other; where there is only one it stands as it is.
        fade = jnp.linspace(0, 1, audio.shape[2] + 2)[1:-1]
        fade = 0.5 - jnp.abs(fade - 0.5)
        used = jnp.arange(audio.shape[1]) < (frames // config.chunk_frames)[:, None]
        fade = used[..., None] * fade
        total, weight = (self._overlap_add(x) for x in (audio * fade, fade))
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)

    def _chunks(self, audio: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B, n] -> [B, ceil(n / stride), chunk], silent beyond a row's end."""
        config = self.config
        count = -(-audio.shape[1] // config.stride)
        spare = (count - 1) * config.stride + config.chunk - audio.shape[1]
        audio = jnp.pad(keep(audio, lengths), ((0, 0), (0, spare)))
        starts = jnp.arange(count) * config.stride
        return audio[:, starts[:, None] + jnp.arange(config.chunk)]

    def _overlap_add(self, chunks: jax.Array) -> jax.Array:
        """[B, C, m] -> [B, (C - 1) * stride + m]."""
        batch, count, width = chunks.shape
        stride = self.config.stride
        sums = jnp.zeros((batch, (count - 1) * stride + width))
        for i in range(count):
            sums = sums.at[:, i * stride : i * stride + width].add(chunks[:, i])
        return sums


class EncodecChunked(Codec):
    """EnCodec at 48 kHz with its weights, for mono audio.

    A row is padded with silence to whole chunks, and each chunk has the same number of frames; as
    chunks overlap, there are a few frames more a second than a chunk of a second has.

    Attributes:
      blocks: chunks without their overlap, for streams (`tokenizers.chunked`).
    """

    def __init__(self, network: ChunkedNetwork, levels: int):
        config = network.config
        clock = config.sample_rate * config.chunk_frames / config.stride
        ahead = config.chunk / config.sample_rate - 1 / clock
        spec = codec_spec("encodec", network, (config.codes,) * levels, clock, lookahead=ahead)
        super().__init__(network, spec, config.sample_rate, levels=levels)
        overlap, each = config.chunk - config.stride, config.chunk_frames
        self.blocks = Blocks(config.stride, each, (0, overlap), (each, each), tail=overlap)
        self._chunk_frames = each
        self._scales = self.jit("scales")

    @classmethod
    def load(cls, folder: Path | str, levels: int | None = None) -> EncodecChunked:
        """Reads a folder in the format of facebook/encodec_48khz: config.json and safetensors.

        Args:
          folder: where they are.
          levels: how many levels to write, the coarse ones; all if None. Each is 1.5 kbit/s in the
            published model, whose bandwidths of 3 to 24 kbit/s are 2 to 16 levels.

        Raises:
          UserError: a file is missing, or it holds no (whole) EnCodec of this kind.
        """
        checkpoint = checkpoints.read(folder, codec_names.ENCODEC_CHUNKED)
        seanet = SeanetConfig(**checkpoint.sizes["seanet"])
        config = ChunkedConfig(**checkpoint.sizes | {"seanet": seanet})
        network = build(lambda: ChunkedNetwork(config, rngs=nnx.Rngs(0)), checkpoint.weights)
        return cls(network, choose_levels(levels, config.levels))

    def scales(self, audio: jax.Array, lengths: jax.Array) -> jax.Array:
        """The power that `encode` divides each chunk by (root mean square, [B, chunks]): codes do
        not hold it. Arguments, and what is raised, as for `encode`."""
        check_rows(audio, lengths)
        if not np.size(audio):
            return jnp.zeros((len(audio), 0))
        return self._scales(own(audio, jnp.float32), own(lengths, jnp.int32))

    def decode_at(self, codes: jax.Array, frames: jax.Array, start: int) -> jax.Array:
        """See `chunked.BlockCodec`: it sounds alike everywhere, with unit power."""
        return self.decode(codes, frames)

    def decode(
        self, codes: jax.Array, frames: jax.Array, scales: jax.Array | None = None
    ) -> jax.Array:
        """Codes int [B, T, K'] and frames int [B], both of whole chunks -> float32 [B, n]; 0 beyond
        a row's chunks. Without `scales` [B, chunks] every chunk has unit power.

        Raises:
          ValueError: T is not of whole chunks; otherwise as `Codec.decode`.
        """
        self.check_codes(codes, frames)
        batch, count, _ = np.shape(codes)
        if count % self._chunk_frames:
            raise ValueError(f"codes come in {self._chunk_frames} frames, got {count}")
        chunks = count // self._chunk_frames
        scales = jnp.ones((batch, chunks)) if scales is None else scales
        check_vectors("scales", scales, batch, chunks)
        if not batch * count:
            return jnp.zeros((batch, 0))
        return self._decode(own(codes, jnp.int32), own(frames, jnp.int32), own(scales, jnp.float32))


def _power(chunks: jax.Array) -> jax.Array:
    """[..., n] -> [..., 1]."""
    return jnp.sqrt(jnp.mean(chunks**2, axis=-1, keepdims=True)) + 1e-8
