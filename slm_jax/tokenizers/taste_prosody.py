"""How each word is said, in eight numbers: what attention averages away.

TASTE's aggregator averages frames under attention, so that how long a word lasts, and how its pitch
moves, reaches the latent only indirectly; 45,000 hours teach it (reference/paper), a few do not.
The decoder's own alignment of text and audio is known while encoding, and gives these directly.
They enter the latent, hence the codes, and nothing else: the decoder never receives times.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.tokenizers.taste_decoder import owners, pick
from slm_jax.tokenizers.taste_text import BEGIN

_SPOKEN_FROM, _APOSTROPHE = ord("0"), ord("'")

FEATURES = (
    *("duration", "pitch", "pause", "slope"),  # the first of each FSQ group starts from these
    *("energy", "voicing", "pitch_spread", "energy_spread"),
)
# Means and deviations over words of the starter's training data, in frames of 16 ms.
_MEAN = np.array([2.57, 0.0, 1.2, -0.04, 0.01, 0.74, 0.18, 0.28], np.float32)
_DEVIATION = np.array([0.72, 0.36, 0.67, 0.24, 0.22, 0.25, 0.21, 0.15], np.float32)


def is_spoken(ids: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Which symbols are sounded; spaces, punctuation and control bytes hold the pauses."""
    return (ids >= _SPOKEN_FROM) | (ids == _APOSTROPHE)


def word_prosody(
    durations: jax.Array,
    ids: jax.Array,
    index: jax.Array,
    words: int,
    mel: jax.Array,
    pitch: jax.Array,
    voiced: jax.Array,
) -> jax.Array:
    """Standardised prosody of each word.

    Args:
      durations: int [B, N], frames of each symbol.
      ids, index: int [B, N], symbols and the word of each (`taste_text.Symbols`).
      words: W.
      mel: [B, T, n_mels], normalised.
      pitch: [B, T], normalised; where unvoiced it does not count.
      voiced: [B, T], 0 or 1.

    Returns:
      [B, W, 8], in the order of `FEATURES`: log of the spoken frames, pitch and energy above the
      utterance's mean, log of the frames of pause behind the word, slope of the pitch, share of
      voiced frames, deviations of pitch and energy within the word. Zero for words without symbols.
    """
    frames = mel.shape[1]
    spoken = is_spoken(ids).astype(mel.dtype)
    silent = (~is_spoken(ids) & (ids != BEGIN) & (ids > 0)).astype(mel.dtype)
    word_of_symbol = jax.nn.one_hot(index, words, dtype=mel.dtype)
    pause = jnp.einsum("bn,bnw->bw", durations * silent, word_of_symbol)
    inside = jnp.arange(frames)[None] < durations.sum(1, keepdims=True)
    owned = pick(word_of_symbol * spoken[..., None], owners(durations, frames))
    member = owned * inside[..., None]
    length = member.sum(1)

    place = (jnp.cumsum(member, axis=1) - 0.5) / jnp.maximum(length, 1)[:, None] * 2 - 1
    sounding = member * voiced[..., None]
    tone_mean, tone_spread, sounding_frames = _moments(pitch, sounding)
    lever = jnp.sum(sounding * place**2, axis=1)
    away = (pitch[..., None] - tone_mean[:, None]) * sounding
    slope = jnp.sum(away * place, axis=1) / (lever + 2.0)
    energy = mel.mean(axis=-1)
    loud_mean, loud_spread, _ = _moments(energy, member)

    def relative(x, weight):
        mean = jnp.sum(x * weight, 1, keepdims=True) / jnp.maximum(weight.sum(1, keepdims=True), 1)
        return (x - mean) * (weight > 0)

    found = jnp.stack(
        [
            jnp.log(jnp.maximum(length, 1)),
            relative(tone_mean, sounding_frames),
            jnp.log1p(pause),
            slope,
            relative(loud_mean, length),
            sounding_frames / jnp.maximum(length, 1),
            tone_spread,
            loud_spread,
        ],
        axis=-1,
    )
    return (found - _MEAN) / _DEVIATION * (length > 0)[..., None]


def _moments(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, T], weight [B, T, W] -> mean, deviation and total weight, each [B, W]."""
    total = weight.sum(1)
    mean = jnp.einsum("bt,btw->bw", x, weight) / jnp.maximum(total, 1)
    square = jnp.einsum("bt,btw->bw", x**2, weight) / jnp.maximum(total, 1)
    return mean, jnp.sqrt(jnp.maximum(square - mean**2, 1e-6)), total
