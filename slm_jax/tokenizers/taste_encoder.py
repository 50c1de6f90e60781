"""TASTE's encoder side: from frozen Whisper features and the words to one latent per word.

Source: TASTE (Tseng et al. 2025, arXiv 2504.07053 §2; reference class `TasteAudioTower` of
mtkresearch/TASTE-SpokenLM). The aggregator is a short Whisper decoder without its output head: the
ASR tokens of the transcript are the queries, the last encoder layer gives the keys, and a shallow
layer, which still holds how things were said, the values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.nn.attention import MaskSpec
from slm_jax.nn.layers import LayerNorm, Linear, scan_layers, stack
from slm_jax.tokenizers.taste_prosody import FEATURES
from slm_jax.tokenizers.whisper import Layer, WhisperConfig


class Aggregator(nnx.Module):
    """Token embeddings attend to the audio: [B, S, D] -> [B, S, latent].

    Args:
      whisper: sizes of the speech encoder.
      layers: decoder layers; initialised from Whisper's by `start_from_whisper`.
      values: encoder layers of which the values are a learned mixture (as in TASLA, arXiv
        2510.14934).
      latent: width of the vectors that are quantised.
    """

    def __init__(
        self, whisper: WhisperConfig, layers: int, values: int, latent: int, *, rngs: nnx.Rngs
    ):
        self.layers = stack(
            lambda rngs: Layer(whisper, whisper.decoder_heads, cross=True, rngs=rngs), layers, rngs
        )
        self.value_norm = LayerNorm(whisper.width)
        self.mix = nnx.Param(jnp.zeros((values,)))
        self.norm = LayerNorm(whisper.width)
        self.project = Linear(whisper.width, latent, bias=True, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, keys: jax.Array, values: jax.Array, audio_mask: jax.Array
    ) -> jax.Array:
        """Aggregates the audio at each token.

        Args:
          tokens: [B, S, D], embedded ASR tokens with positions; causal, so padding goes last.
          keys: [B, T, D], the last encoder layer.
          values: [B, T, L, D], shallow layers (raw residual stream).
          audio_mask: [B, T], 1 where there is audio; padding is not attended to.
        """
        shares = jax.nn.softmax(self.mix[...])
        values = jnp.einsum("btld,l->btd", self.value_norm(values), shares)
        causal = MaskSpec(causal=True)
        heard = MaskSpec(
            q_segment_ids=jnp.ones(tokens.shape[:2], jnp.int32),
            kv_segment_ids=audio_mask.astype(jnp.int32),
        )

        def body(layer: Layer, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            h = layer.self_norm(x)
            q = layer.self_attention.queries(h)
            x += layer.self_attention.output(q, *layer.self_attention.keys_values(h), causal)
            cross = layer.cross_attention
            q = cross.queries(layer.cross_norm(x))
            k, _ = cross.keys_values(keys)
            _, v = cross.keys_values(values)
            x += cross.output(q, k, v, heard)
            x += layer.mlp(x)
            return x, None

        x, _ = scan_layers(self.layers, body, tokens)
        return self.project(self.norm(x))


def start_from_whisper(params: dict, decoder: dict, picked: tuple[int, ...]) -> dict:
    """Aggregator parameters with the given Whisper decoder layers in place of the random ones.

    The value projections become the identity, since their input is another layer than the one
    they were trained on (reference: `audio_joint_encoder_segmenter.py`, `v_proj`).
    """
    layers = jax.tree.map(lambda x: jnp.asarray(x)[jnp.asarray(picked)], decoder["layers"])
    value = layers["cross_attention"]["v"]
    eye = jnp.eye(value["kernel"].shape[1], dtype=value["kernel"].dtype)
    value["kernel"] = jnp.broadcast_to(eye, value["kernel"].shape)
    value["bias"] = jnp.zeros_like(value["bias"])
    project = jax.tree.map(lambda x: 0.3 * x, params["project"])  # prosody speaks first
    norm = jax.tree.map(jnp.asarray, decoder["norm"])
    return params | {"layers": layers, "norm": norm, "project": project}


class Prosody(nnx.Module):
    """Word prosody [B, W, 8] (`taste_prosody.FEATURES`) -> its share of the latents.

    Args:
      latent: width of the latents.
      groups: of the FSQ; the features start on dimensions of their own, the first ones on the
        first dimension of each group. 0 for a random start.
    """

    def __init__(self, latent: int, groups: int, *, rngs: nnx.Rngs):
        self.project = Linear(len(FEATURES), latent, rngs=rngs)
        if groups:
            kernel = np.zeros((len(FEATURES), latent), np.float32)
            for feature in range(min(len(FEATURES), latent)):
                # 0.6 keeps words of two deviations on the steep part of FSQ's tanh.
                kernel[feature, feature % groups * (latent // groups) + feature // groups] = 0.6
            self.project.kernel = nnx.Param(jnp.asarray(kernel))

    def __call__(self, prosody: jax.Array) -> jax.Array:
        return self.project(prosody)


class SpeakerEncoder(nnx.Module):
    """Mean and deviation of shallow features and of pitch over an utterance -> a unit vector.

    x-vector style statistics pooling (Snyder et al. 2018).
    """

    def __init__(self, width: int, speaker_width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(2 * width)
        self.project = Linear(2 * width, speaker_width, bias=True, rngs=rngs)
        self.pitch = Linear(2, speaker_width, rngs=rngs)

    def __call__(
        self, features: jax.Array, mask: jax.Array, pitch: jax.Array, voiced: jax.Array
    ) -> jax.Array:
        """features [B, T, D], mask [B, T], normalised pitch [B, F] and voiced [B, F], 0 or 1, ->
        [B, speaker_width]."""
        statistics = jnp.concatenate(_statistics(features, mask), axis=-1)
        tone = jnp.concatenate(_statistics(pitch[..., None], voiced), axis=-1)
        vector = self.project(self.norm(statistics)) + self.pitch(tone)
        return vector * jax.lax.rsqrt(jnp.sum(vector**2, axis=-1, keepdims=True) + 1e-8)


def _statistics(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [B, T, D], mask [B, T] -> mean and deviation over T, each [B, D]."""
    weight = (mask / jnp.maximum(mask.sum(1, keepdims=True), 1))[..., None]
    mean = jnp.sum(weight * x, axis=1)
    variance = jnp.sum(weight * (x - mean[:, None]) ** 2, axis=1)
    return mean, jnp.sqrt(variance + 1e-5)


def word_mean(tokens: jax.Array, word_of_token: jax.Array, words: int) -> jax.Array:
    """Averages the vectors of each word's tokens.

    Args:
      tokens: [B, S, D].
      word_of_token: int [B, S], -1 for prefix, end and padding.
      words: W.

    Returns:
      [B, W, D], zero for words without tokens.
    """
    member = jax.nn.one_hot(word_of_token, words, dtype=tokens.dtype)
    counts = jnp.maximum(member.sum(1), 1)
    return jnp.einsum("bsw,bsd->bwd", member, tokens) / counts[..., None]
