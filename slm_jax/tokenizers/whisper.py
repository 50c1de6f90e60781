"""Whisper (Radford et al. 2022, arXiv:2212.04356): the encoder-decoder network, any size.

Same function as openai/whisper's model.py; layers are stacked and scanned.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.interop import whisper as checkpoints
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.layers import LECUN_NORMAL, Embedding, LayerNorm, Linear, gelu, scan_layers, stack
from slm_jax.nn.tree import load_flat, merge, pure_params

FRAME_RATE = 100  # mel frames a second; the encoder halves it
AUDIO_CONTEXT = 1500  # encoder frames, 30 s


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes of a Whisper, and what decoding must know of its checkpoint.

    Attributes:
      vocab_size: text, special and timestamp ids.
      n_mels: 80, or 128 from large-v3 on.
      width, mlp_width: of encoder and decoder alike.
      encoder_layers, encoder_heads, decoder_layers, decoder_heads: as they say.
      text_context: longest decoder input.
      alignment_heads: (decoder layer, head) pairs whose cross-attention follows the audio.
      suppress_ids, suppress_ids_begin: ids never written, and never written first.
      dtype: of activations, "float32" or "bfloat16".
    """

    vocab_size: int = 51864
    n_mels: int = 80
    width: int = 384
    mlp_width: int = 1536
    encoder_layers: int = 4
    encoder_heads: int = 6
    decoder_layers: int = 4
    decoder_heads: int = 6
    text_context: int = 448
    alignment_heads: tuple[tuple[int, int], ...] = ()
    suppress_ids: tuple[int, ...] = ()
    suppress_ids_begin: tuple[int, ...] = ()
    dtype: str = "float32"


class KV(NamedTuple):
    """Keys and values of all decoder layers, [L, B, T, H, h] each."""

    k: jax.Array
    v: jax.Array


class DecoderOutput(NamedTuple):
    """What the decoder returns.

    Attributes:
      hidden: [B, S, D] after the final norm; `Decoder.logits` reads it.
      cache: self-attention keys and values with the new ones written, None without a cache.
      scores: [A, B, S, T] float32, cross-attention before its softmax of the heads asked for, in
        their order; None when none were.
    """

    hidden: jax.Array
    cache: KV | None
    scores: jax.Array | None


class Conv(nnx.Module):
    """Convolution of width 3, a zero on each side: [B, T, in] -> [B, T / stride, out]."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(
            LECUN_NORMAL(rngs.params(), (3, inputs, outputs)), axes=(None, None, "embed")
        )
        self.bias = nnx.Param(jnp.zeros(outputs), axes=("embed",))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            (self.stride,),
            [(1, 1)],
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias.astype(x.dtype)


class Attention(nnx.Module):
    """Projections of multi-head attention; keys have no bias."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        into, out = ("embed", "heads"), ("heads", "embed")
        self.q = Linear(width, width, bias=True, axes=into, rngs=rngs)
        self.k = Linear(width, width, axes=into, rngs=rngs)
        self.v = Linear(width, width, bias=True, axes=into, rngs=rngs)
        self.o = Linear(width, width, bias=True, axes=out, rngs=rngs)
        self.heads = heads

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, H, h]."""
        return self._split(self.q(x))

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, D] -> two [B, T, H, h]."""
        return self._split(self.k(x)), self._split(self.v(x))

    def output(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskSpec) -> jax.Array:
        """Attends and projects back: [B, S, D]."""
        mixed = attention(q, k, v, mask)
        return self.o(mixed.reshape(*mixed.shape[:2], -1))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class Layer(nnx.Module):
    """Pre-norm transformer layer; with cross-attention in the decoder."""

    def __init__(self, config: WhisperConfig, heads: int, *, cross: bool, rngs: nnx.Rngs):
        width = config.width
        self.self_norm = LayerNorm(width)
        self.self_attention = Attention(width, heads, rngs)
        if cross:
            self.cross_norm = LayerNorm(width)
            self.cross_attention = Attention(width, heads, rngs)
        self.mlp_norm = LayerNorm(width)
        self.up = Linear(width, config.mlp_width, bias=True, rngs=rngs)
        self.down = Linear(config.mlp_width, width, bias=True, axes=("mlp", "embed"), rngs=rngs)

    def hear(self, x: jax.Array) -> jax.Array:
        """An encoder's layer, [B, T, D] -> [B, T, D]: every frame sees every other."""
        h = self.self_norm(x)
        q = self.self_attention.queries(h)
        k, v = self.self_attention.keys_values(h)
        x += self.self_attention.output(q, k, v, MaskSpec())
        return x + self.mlp(x)

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(self.mlp_norm(x))))


class Encoder(nnx.Module):
    """Log-mel frames to features at half their rate."""

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        self.conv1 = Conv(config.n_mels, config.width, stride=1, rngs=rngs)
        self.conv2 = Conv(config.width, config.width, stride=2, rngs=rngs)
        self.layers = stack(
            lambda rngs: Layer(config, config.encoder_heads, cross=False, rngs=rngs),
            config.encoder_layers,
            rngs,
        )
        self.norm = LayerNorm(config.width)
        self.config = config

    def __call__(self, mel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes log-mel frames.

        Args:
          mel: [B, n_mels, T], T even and at most 3000; with fewer the audio is not padded to
            30 s, and the first T / 2 positions are used.

        Returns:
          last: [B, T / 2, D], after the final norm.
          layers: [encoder_layers + 1, B, T / 2, D], the raw residual stream; `layers[i]` is that
            after i layers, as `hidden_states[i]` in transformers (whose last one is normed).
        """
        frames = mel.shape[2] // 2
        if frames > AUDIO_CONTEXT:
            raise ValueError(f"Whisper hears 30 s at a time, got {mel.shape[2] / FRAME_RATE} s")
        x = jnp.swapaxes(mel, 1, 2).astype(self.config.dtype)
        x = gelu(self.conv1(x))
        x = gelu(self.conv2(x))
        x += sinusoids(AUDIO_CONTEXT, self.config.width)[:frames].astype(x.dtype)

        def body(layer: Layer, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = layer.hear(x)
            return x, x

        last, layers = scan_layers(self.layers, body, x)
        return self.norm(last), jnp.concatenate([x[None], layers])


class Decoder(nnx.Module):
    """Text ids and encoded audio to what the next ids are read from."""

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        self.embedding = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.positions = nnx.Param(
            jax.random.normal(rngs.params(), (config.text_context, config.width)) * 0.01,
            axes=(None, "embed"),
        )
        self.layers = stack(
            lambda rngs: Layer(config, config.decoder_heads, cross=True, rngs=rngs),
            config.decoder_layers,
            rngs,
        )
        self.norm = LayerNorm(config.width)
        self.config = config

    def cross(self, encoded: jax.Array) -> KV:
        """Keys and values of the encoded audio [B, T, D] for every layer, computed once."""

        def body(layer: Layer, carry: None, _: None) -> tuple[None, KV]:
            return carry, KV(*layer.cross_attention.keys_values(encoded))

        return scan_layers(self.layers, body, None)[1]

    def init_cache(self, batch: int, length: int) -> KV:
        """Empty self-attention cache for `length` ids."""
        config = self.config
        heads = config.decoder_heads
        shape = (config.decoder_layers, batch, length, heads, config.width // heads)
        return KV(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    def __call__(
        self,
        ids: jax.Array,
        cross: KV,
        *,
        cache: KV | None = None,
        start: jax.Array | int = 0,
        heads: tuple[tuple[int, int], ...] = (),
    ) -> DecoderOutput:
        """Runs the decoder over given ids: a whole text at once, or the next ones of a cache.

        Args:
          ids: int [B, S].
          cross: what `cross` returned.
          cache: keys and values of the ids before, of which the first `start` count.
          start: position of the first id, the same in all rows; 0 without a cache.
          heads: (layer, head) pairs whose cross-attention scores are wanted; static.
        """
        length = ids.shape[1]
        here = start + jnp.arange(length)
        x = self.embedding(ids) + jnp.take(self.positions[...], here, axis=0)
        x = x.astype(self.config.dtype)
        mask = MaskSpec(causal=True, q_positions=here[None])
        slots = jnp.asarray(_slots(self.config, heads))
        scores = jnp.zeros((len(heads), ids.shape[0], length, cross.k.shape[2]), jnp.float32)

        def body(layer: Layer, carry: tuple, inputs: tuple) -> tuple[tuple, KV | None]:
            x, scores = carry
            cross, cache, slots = inputs
            h = layer.self_norm(x)
            q = layer.self_attention.queries(h)
            k, v = layer.self_attention.keys_values(h)
            if cache is not None:
                k = jax.lax.dynamic_update_slice_in_dim(cache.k, k, start, axis=1)
                v = jax.lax.dynamic_update_slice_in_dim(cache.v, v, start, axis=1)
                cache = KV(k, v)
            x += layer.self_attention.output(q, k, v, mask)
            q = layer.cross_attention.queries(layer.cross_norm(x))
            if heads:
                scores = scores.at[slots].set(_scores(q, cross.k), mode="drop")
            x += layer.cross_attention.output(q, *cross, MaskSpec())
            x += layer.mlp(x)
            return (x, scores), cache

        (x, scores), cache = scan_layers(self.layers, body, (x, scores), (cross, cache, slots))
        return DecoderOutput(self.norm(x), cache, scores if heads else None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] float32; the head is tied to the embedding."""
        return self.embedding.attend(hidden).astype(jnp.float32)


class Whisper(nnx.Module):
    """Encoder and decoder of one checkpoint."""

    def __init__(self, config: WhisperConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.config = config

    @classmethod
    def load(cls, folder: Path | str, dtype: str = "float32") -> Whisper:
        """Reads a CTranslate2, Hugging Face or OpenAI-named safetensors folder.

        Raises:
          UserError: the folder holds no (whole) Whisper model.
        """
        checkpoint = checkpoints.read(folder)
        config = WhisperConfig(
            **checkpoint.sizes,
            alignment_heads=checkpoint.alignment_heads,
            suppress_ids=checkpoint.suppress_ids,
            suppress_ids_begin=checkpoint.suppress_ids_begin,
            dtype=dtype,
        )
        graphdef, abstract = pure_params(nnx.eval_shape(lambda: cls(config, nnx.Rngs(0))))
        params = load_flat(abstract, checkpoint.weights)
        return merge(graphdef, jax.tree.map(jnp.asarray, params))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Position encodings [length, width] of the encoder: sines, then cosines.

    Frequencies fall geometrically from 1 to 1/10000 (openai/whisper, `sinusoids`).
    """
    half = width // 2
    frequencies = np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _slots(config: WhisperConfig, heads: tuple[tuple[int, int], ...]) -> np.ndarray:
    """int32 [L, H]: where each head's scores go; past the end for a head that is not wanted."""
    slots = np.full((config.decoder_layers, config.decoder_heads), len(heads), np.int32)
    for slot, (layer, head) in enumerate(heads):
        slots[layer, head] = slot
    return slots


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """[B, S, H, h], [B, T, H, h] -> scaled scores [H, B, S, T] float32."""
    scores = jnp.einsum("bshd,bthd->hbst", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5
