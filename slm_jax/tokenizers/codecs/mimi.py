"""Mimi, the streaming codec of Moshi (Défossez et al. 2024, arXiv 2410.00037 §3.3).

Causal SEANet convolutions, a causal transformer with a sliding window on either side of the
quantiser, and a split residual quantiser. Same function as MimiModel of transformers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.interop import codec_names
from slm_jax.interop import codecs as checkpoints
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.codec_conv import CodecConv, CodecTranspose, causal
from slm_jax.nn.layers import LayerNorm, Linear
from slm_jax.nn.rope import inverse_frequencies, rotate
from slm_jax.nn.streaming import Run
from slm_jax.tokenizers.codecs.codec import build, choose_levels, codec_spec
from slm_jax.tokenizers.codecs.rvq import SplitCodebooks
from slm_jax.tokenizers.codecs.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder
from slm_jax.tokenizers.codecs.stream import StreamingCodec, StreamingNetwork

_UNWRITTEN = jnp.iinfo(jnp.int32).max  # position of an empty cache slot: ahead of every query


@dataclasses.dataclass(frozen=True)
class MimiConfig:
    """Sizes; the default is the published one.

    Attributes:
      sample_rate: in Hz.
      seanet: the convolutions, down to `seanet.hop` samples for each latent.
      stride: how many of those latents make one frame of codes.
      layers, heads, kv_heads, head_dim, mlp_width: of both transformers.
      window: latents that one latent attends to, itself included.
      rope_theta, norm_epsilon: as they say.
      levels, semantic_levels: of the quantiser, all and the first ones that are semantic.
      codes: ids of each level.
      code_width: of a codebook's vectors.
    """

    sample_rate: int = 24_000
    seanet: SeanetConfig = SeanetConfig()
    stride: int = 2
    layers: int = 8
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    mlp_width: int = 2048
    window: int = 250
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    levels: int = 32
    semantic_levels: int = 1
    codes: int = 2048
    code_width: int = 256

    @property
    def frame(self) -> int:
        """Samples of one frame."""
        return self.seanet.hop * self.stride


class Cache(NamedTuple):
    """Keys and values [B, window - 1, Hkv, h] of the latents before, for each layer, and how many
    those were in all, int []."""

    layers: list[tuple[jax.Array, jax.Array]]
    position: jax.Array


class TransformerLayer(nnx.Module):
    """Pre-norm layer with layer scales; projections without biases."""

    def __init__(self, config: MimiConfig, rngs: nnx.Rngs):
        width, heads = config.seanet.width, config.heads * config.head_dim
        keys = config.kv_heads * config.head_dim
        self.norm = LayerNorm(width, epsilon=config.norm_epsilon)
        self.q = Linear(width, heads, axes=("embed", "heads"), rngs=rngs)
        self.k = Linear(width, keys, axes=("embed", "heads"), rngs=rngs)
        self.v = Linear(width, keys, axes=("embed", "heads"), rngs=rngs)
        self.o = Linear(heads, width, axes=("heads", "embed"), rngs=rngs)
        self.scale = nnx.Param(jnp.ones(width))
        self.mlp_norm = LayerNorm(width, epsilon=config.norm_epsilon)
        self.up = Linear(width, config.mlp_width, rngs=rngs)
        self.down = Linear(config.mlp_width, width, axes=("mlp", "embed"), rngs=rngs)
        self.mlp_scale = nnx.Param(jnp.ones(width))

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class Transformer(nnx.Module):
    """Causal transformer with a sliding window: [B, T, D] -> [B, T, D]. A `streaming.Layer`.

    Layers are not stacked: XLA:CPU would copy each one's weights out of the stack at every step of
    a stream, which takes longer than to read them.
    """

    def __init__(self, config: MimiConfig, rngs: nnx.Rngs):
        self.layers = nnx.List(TransformerLayer(config, rngs) for _ in range(config.layers))
        self.config = config

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._run(x, None)[0], lengths

    def start(self, batch: int) -> Cache:
        config = self.config
        empty = jnp.zeros((batch, config.window - 1, config.kv_heads, config.head_dim))
        return Cache([(empty, empty) for _ in self.layers], jnp.zeros((), jnp.int32))

    def step(self, x: jax.Array, state: Cache) -> tuple[jax.Array, Cache]:
        y, layers = self._run(x, state)
        return y, Cache(layers, state.position + x.shape[1])

    def _run(
        self, x: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """x -> the same shape, and `Cache.layers` for the next step (empty without a cache)."""
        config, count = self.config, x.shape[1]
        start = 0 if cache is None else cache.position
        here = start + jnp.arange(count)[None]
        seen = here
        if cache is not None:
            past = start + jnp.arange(1 - config.window, 0)[None]
            seen = jnp.concatenate([jnp.where(past < 0, _UNWRITTEN, past), here], axis=1)
        mask = MaskSpec(causal=True, window=config.window, q_positions=here, kv_positions=seen)
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, None)

        after = []
        for i, layer in enumerate(self.layers):
            h = layer.norm(x)
            q, k, v = (
                project(h).reshape(*h.shape[:2], -1, config.head_dim)
                for project in (layer.q, layer.k, layer.v)
            )
            q, k = rotate(q, here, frequencies), rotate(k, here, frequencies)
            if cache is not None:
                k, v = (
                    jnp.concatenate(pair, axis=1)
                    for pair in zip(cache.layers[i], (k, v), strict=True)
                )
            mixed = attention(q, k, v, mask)
            x += layer.o(mixed.reshape(*h.shape[:2], -1)) * layer.scale[...]
            x += layer.mlp(x) * layer.mlp_scale[...]
            after.append((k[:, count:], v[:, count:]))
        return x, after


class MimiNetwork(StreamingNetwork):
    """Both halves and the quantiser."""

    def __init__(self, config: MimiConfig, *, rngs: nnx.Rngs):
        width, stride = config.seanet.width, config.stride
        self.config = config
        self.encoder = SeanetEncoder(config.seanet, rngs=rngs)
        self.encoder_transformer = Transformer(config, rngs)
        padding = causal(2 * stride, stride, mode="replicate")
        self.downsample = CodecConv(
            width, width, 2 * stride, padding, stride=stride, bias=False, rngs=rngs
        )
        self.quantizer = SplitCodebooks(
            config.semantic_levels, config.levels, config.codes, width, config.code_width, rngs=rngs
        )
        self.upsample = CodecTranspose(
            width,
            width,
            2 * stride,
            (0, stride),
            stride=stride,
            depthwise=True,
            bias=False,
            rngs=rngs,
        )
        self.decoder_transformer = Transformer(config, rngs)
        self.decoder = SeanetDecoder(config.seanet, rngs=rngs)

    def to_codes(self, audio: jax.Array, levels: int, run: Run) -> jax.Array:
        """[B, n] -> int32 [B, frames, levels]."""
        x = self.encoder(audio[..., None], run)
        latents = run(self.downsample, run(self.encoder_transformer, x))
        return self.quantizer.encode(latents, levels)

    def to_audio(self, codes: jax.Array, run: Run) -> jax.Array:
        """int [B, frames, K'] -> [B, n]."""
        x = run(self.upsample, self.quantizer.decode(codes))
        return self.decoder(run(self.decoder_transformer, x), run)[..., 0]


class Mimi(StreamingCodec):
    """Mimi with its weights. A frame of codes depends on no sample after its own.

    Whole rows take memory for every pair of latents, 25 a second; a stream takes the same at any
    length.
    """

    def __init__(self, network: MimiNetwork, levels: int):
        config = network.config
        clock = config.sample_rate / config.frame
        spec = codec_spec("mimi", network, (config.codes,) * levels, clock, lookahead=0.0)
        super().__init__(network, spec, config.sample_rate, levels, first_frames=1)

    @classmethod
    def load(cls, folder: Path | str, levels: int | None = None) -> Mimi:
        """Reads a folder in the format of kyutai/mimi: config.json and safetensors.

        Args:
          folder: where they are.
          levels: how many levels to write, the coarse ones; all if None. Moshi uses 8 of 32.

        Raises:
          UserError: a file is missing, or it holds no (whole) Mimi.
        """
        checkpoint = checkpoints.read(folder, codec_names.MIMI)
        seanet = SeanetConfig(**checkpoint.sizes["seanet"])
        config = MimiConfig(**checkpoint.sizes | {"seanet": seanet})
        network = build(lambda: MimiNetwork(config, rngs=nnx.Rngs(0)), checkpoint.weights)
        return cls(network, choose_levels(levels, config.levels, config.semantic_levels))
