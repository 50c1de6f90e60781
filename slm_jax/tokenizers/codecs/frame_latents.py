"""Our codec without its quantiser: audio to vectors and back, for continuous heads."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.streams import StreamSpec, fingerprint
from slm_jax.tokenizers.checks import check_vectors
from slm_jax.tokenizers.codecs.codec import Codec, codec_spec, keep, own, whole_frames
from slm_jax.tokenizers.codecs.frame_codec import FrameCodecNetwork, load_network


class _Network(nnx.Module):
    """The codec's network, with vectors in place of codes."""

    def __init__(self, codec: FrameCodecNetwork):
        self.config, self.codec = codec.config, codec

    def scale(self) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation [L] of the latents, were all codes of all levels equally likely."""
        books = self.codec.codebooks[...]
        return books.mean(1).sum(0), jnp.sqrt(books.var(1).sum(0) + 1e-8)

    def encode(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        audio, lengths = whole_frames(audio, lengths, self.config.hop)
        frames = lengths // self.config.hop
        mean, deviation = self.scale()
        return keep((self.codec.latents(audio, frames) - mean) / deviation, frames), frames

    def decode(self, vectors: jax.Array, frames: jax.Array) -> jax.Array:
        mean, deviation = self.scale()
        audio = self.codec.sound(vectors * deviation + mean, frames)
        return keep(audio, frames * self.config.hop)


class FrameLatents(Codec):
    """Vectors of `FrameCodec` before they are quantised, on its rate.

    Each dimension is brought near zero mean and unit variance by figures of the codebooks, so that
    equal weights give equal vectors whatever they are made from. As `Codec`, but `encode` gives
    float32 [B, T, L] in place of codes, which `decode` takes.
    """

    def __init__(self, network: FrameCodecNetwork):
        config = network.config
        rate = config.sample_rate / config.hop
        codes = codec_spec("codec", network, config.rvq.vocab, rate, lookahead=0.0)
        spec = StreamSpec(
            "latents",
            "continuous",
            rate,
            width=config.rvq.width,
            fingerprint=fingerprint("latents", codes.fingerprint),
        )
        super().__init__(_Network(network), spec, config.sample_rate)

    @classmethod
    def load(cls, folder: Path | str | None = None) -> FrameLatents:
        """Reads what `save_codec` wrote; by default the starter.

        Raises:
          UserError: a file is missing or damaged, or they do not fit.
        """
        return cls(load_network(folder))

    def decode(self, codes: jax.Array, frames: jax.Array) -> jax.Array:
        """Vectors float32 [B, T, L], frames int [B] -> float32 [B, n]; 0 beyond a row's frames.

        Raises:
          ValueError: shapes or types that do not fit, or vectors that are not finite.
        """
        vectors = np.asarray(codes)
        flat = vectors.reshape(-1, vectors.shape[-1])
        check_vectors("vectors", flat, len(flat), self.spec.width)
        return self._decode(own(vectors, jnp.float32), own(frames, jnp.int32))
