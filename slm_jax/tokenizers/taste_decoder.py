"""TASTE's decoder side: words, TASTE tokens and a speaker vector to durations and mel frames.

Non-autoregressive, in the manner of FastSpeech (Ren et al. 2019, arXiv 1905.09263): each UTF-8 byte
of the text gets a duration, its hidden state is repeated for as many frames, and a convolutional
stack turns frames into mels. The reference decodes with an autoregressive unit LM instead
(`TasteSpeechDecoder`). Everything is convolutional, so that the look-ahead is bounded and known.
Durations are learned by monotonic alignment (Kim et al. 2020, Glow-TTS, arXiv 2005.11129 §2.2).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.audio.features import MelConfig
from slm_jax.nn.conv import ConvNeXt
from slm_jax.nn.layers import Embedding, LayerNorm, Linear
from slm_jax.tokenizers.vocoder import denormalise_mel

BEGIN, END = 2, 3  # control bytes that never occur in text: the silence around an utterance
_SPACE = ord(" ")


@dataclasses.dataclass(frozen=True)
class TasteDecoderConfig:
    """Sizes; the default has 5 M parameters.

    Attributes:
      text_width, text_mlp, text_layers: of the stack over bytes.
      width, mlp, layers: of the stack over frames.
    """

    text_width: int = 256
    text_mlp: int = 512
    text_layers: int = 5
    width: int = 256
    mlp: int = 640
    layers: int = 7

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError("TasteDecoderConfig: all sizes must be positive")


class TextBytes(NamedTuple):
    """The text as the decoder reads it.

    Attributes:
      ids: int32 [N] bytes, BEGIN first and END last; words are separated by one space.
      words: int32 [N], the word of each byte; a space, BEGIN and END belong to the word before
        (BEGIN to word 0).
    """

    ids: np.ndarray
    words: np.ndarray


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spell_numerals(word: str) -> str:
    """English numerals as they are read: up to 99 as a number, longer ones digit by digit."""

    def read(match: re.Match) -> str:
        digits = match[0]
        if len(digits) > 2 or (len(digits) == 2 and digits[0] == "0"):
            return " ".join(_ONES[int(d)] for d in digits)
        if int(digits) < len(_ONES):
            return _ONES[int(digits)]
        tens, ones = _TENS[int(digits[0]) - 2], int(digits[1])
        return f"{tens} {_ONES[ones]}" if ones else tens

    return re.sub(r"[0-9]+", read, word)


def text_bytes(words: Sequence[str]) -> TextBytes:
    """Bytes of case-folded words, numerals spelled out."""
    ids, index = [BEGIN], [0]
    for w, word in enumerate(words):
        spelled = spell_numerals(word.casefold()).encode() + (b" " if w + 1 < len(words) else b"")
        ids += spelled
        index += [w] * len(spelled)
    ids.append(END)
    index.append(max(0, len(words) - 1))
    return TextBytes(np.array(ids, np.int32), np.array(index, np.int32))


class TextState(NamedTuple):
    """hidden [B, N, D], prior [B, N, n_mels] (the mel each byte expects), log_durations [B, N]."""

    hidden: jax.Array
    prior: jax.Array
    log_durations: jax.Array


class TasteDecoder(nnx.Module):
    """See the module.

    Attributes:
      text_lookahead: bytes of future text that a byte's state depends on.
      frame_lookahead: mel frames of future states that a frame depends on.
    """

    def __init__(
        self,
        config: TasteDecoderConfig,
        mel: MelConfig,
        latent: int,
        speaker_width: int,
        *,
        rngs: nnx.Rngs,
    ):
        d = config.text_width
        self.bytes = Embedding(256, d, rngs=rngs, init=jax.nn.initializers.normal(0.5))
        self.latent = Linear(latent, d, bias=True, rngs=rngs)
        self.speaker = Linear(speaker_width, d, rngs=rngs)
        self.text = ConvNeXt(d, config.text_mlp, config.text_layers, rngs=rngs)
        self.text_norm = LayerNorm(d)
        self.duration_in = Linear(d, d, bias=True, rngs=rngs)
        self.duration = ConvNeXt(d, config.text_mlp, 2, kernel=3, rngs=rngs)
        self.duration_out = Linear(d, 1, bias=True, rngs=rngs)
        self.prior = Linear(d, mel.n_mels, bias=True, rngs=rngs)
        self.frame_in = Linear(d + _POSITION_FEATURES, config.width, bias=True, rngs=rngs)
        self.frames = ConvNeXt(config.width, config.mlp, config.layers, rngs=rngs)
        self.frame_norm = LayerNorm(config.width)
        self.mel_out = Linear(config.width, mel.n_mels, bias=True, rngs=rngs)
        self.text_lookahead = self.text.lookahead + self.duration.lookahead
        self.frame_lookahead = self.frames.lookahead

    def read(
        self, ids: jax.Array, words: jax.Array, latents: jax.Array, speaker: jax.Array
    ) -> TextState:
        """ids, words int [B, N] (id 0 is padding), latents [B, W, L], speaker [B, E]."""
        mask = (ids > 0).astype(latents.dtype)
        told = pick(self.latent(latents), words)
        x = self.bytes(ids) + told + self.speaker(speaker)[:, None]
        hidden = self.text_norm(self.text(x, mask))
        timed = self.duration(self.duration_in(hidden), mask)
        return TextState(hidden, self.prior(hidden), self.duration_out(timed)[..., 0])

    def write(self, hidden: jax.Array, durations: jax.Array, frames: int) -> jax.Array:
        """Repeats each byte's state for its frames and predicts mels.

        Args:
          hidden: [B, N, D].
          durations: int [B, N], frames of each byte, 0 for padding.
          frames: T, at least the largest sum of durations.

        Returns:
          normalised mels [B, T, n_mels]; rows end where their durations do.
        """
        ends = jnp.cumsum(durations, axis=1)
        time = jnp.arange(frames)
        owner = owners(durations, frames)
        length = jnp.take_along_axis(durations, owner, axis=1)
        since = time - (jnp.take_along_axis(ends, owner, axis=1) - length)
        mask = (time[None] < ends[:, -1:]).astype(hidden.dtype)
        repeated = pick(hidden, owner)
        x = self.frame_in(jnp.concatenate([repeated, _position(since, length)], axis=-1))
        return self.mel_out(self.frame_norm(self.frames(x, mask)))

    def mels(self, hidden: jax.Array, durations: jax.Array, frames: int) -> jax.Array:
        """Natural-log mels [B, T, n_mels] for the vocoder; silence behind the end of a row."""
        ends = durations.sum(axis=1)
        inside = jnp.arange(frames)[None] < ends[:, None]
        mel = denormalise_mel(self.write(hidden, durations, frames))
        return jnp.where(inside[..., None], mel, jnp.log(1e-5))


def owners(durations: jax.Array, frames: int) -> jax.Array:
    """durations int [B, N] -> int [B, T], the byte that each frame belongs to."""
    ends = jnp.cumsum(durations, axis=1)
    owner = jnp.sum(jnp.arange(frames)[None, :, None] >= ends[:, None, :], axis=-1)
    return jnp.minimum(owner, durations.shape[1] - 1)


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, N, D], index int [B, T] -> [B, T, D], as a product: the gradient of a gather is a
    scatter, which XLA:CPU runs one element at a time."""
    return jax.nn.one_hot(index, x.shape[1], dtype=x.dtype) @ x


_POSITION_FEATURES = 6


def _position(since: jax.Array, length: jax.Array) -> jax.Array:
    """Where a frame lies in its byte [B, T] -> [B, T, 6]."""
    phase = (since + 0.5) / jnp.maximum(length, 1)
    left = length - since
    features = (phase, jnp.sin(jnp.pi * phase), jnp.cos(jnp.pi * phase))
    scales = (jnp.log1p(since), jnp.log1p(jnp.maximum(left, 0)), jnp.log1p(length))
    return jnp.stack([*features, *scales], axis=-1).astype(jnp.float32)


def round_durations(log_durations: jax.Array, ids: jax.Array) -> jax.Array:
    """Frames per byte, int32 [B, N]: rounded on the running sum, so that errors do not add up;
    every byte of a character's start gets at least one frame, padding none."""
    lengths = jnp.where(ids > 0, jnp.maximum(jnp.exp(log_durations), 1.0), 0.0)
    ends = jnp.round(jnp.cumsum(lengths, axis=1))
    return jnp.diff(ends, axis=1, prepend=0).astype(jnp.int32)


def monotonic_alignment(scores: jax.Array, bytes_: jax.Array, frames: jax.Array) -> jax.Array:
    """Durations of the best monotonic path.

    Args:
      scores: [B, N, T], log-likelihood of frame t under byte n.
      bytes_: int [B], valid bytes of each row.
      frames: int [B], valid frames; at least as many as bytes.

    Returns:
      int32 [B, N], at least 1 for each valid byte, summing to `frames`.
    """
    batch, count, length = scores.shape
    low = -1e9
    column = jnp.full((batch, count), low).at[:, 0].set(scores[:, 0, 0])

    def forward(column, score):
        entered = jnp.pad(column[:, :-1], ((0, 0), (1, 0)), constant_values=low)
        moved = entered > column
        return jnp.where(moved, entered, column) + score, moved

    _, moved = jax.lax.scan(forward, column, jnp.moveaxis(scores, 2, 0)[1:])
    moved = jnp.concatenate([jnp.zeros((1, batch, count), bool), moved])

    def backward(at, inputs):
        step_moved, t = inputs
        active = t < frames
        owner = jax.nn.one_hot(at, count, dtype=jnp.int32) * active[:, None]
        came = jnp.take_along_axis(step_moved, at[:, None], axis=1)[:, 0]
        return jnp.where(active & came, at - 1, at), owner

    times = jnp.arange(length)
    _, owners = jax.lax.scan(backward, bytes_ - 1, (moved, times), reverse=True)
    return owners.sum(axis=0)


def word_times(
    durations: np.ndarray, text: TextBytes, words: int, seconds_per_frame: float
) -> list[tuple[float, float]]:
    """(start, end) in seconds of each word, without the space behind it."""
    ends = np.cumsum(durations)[: len(text.ids)]
    starts = ends - durations[: len(text.ids)]
    spoken = (text.ids != _SPACE) & (text.ids != BEGIN) & (text.ids != END)
    times = []
    for w in range(words):
        own = np.flatnonzero(spoken & (text.words == w))
        first, last = (own[0], own[-1]) if len(own) else (0, 0)
        times.append((float(starts[first]), float(ends[last]) if len(own) else float(starts[0])))
    return [(a * seconds_per_frame, b * seconds_per_frame) for a, b in times]
