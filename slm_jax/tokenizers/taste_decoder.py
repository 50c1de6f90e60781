"""TASTE's decoder side: words, TASTE tokens and a speaker vector to durations and mel frames.

Non-autoregressive by default, in the manner of FastSpeech (Ren et al. 2019, arXiv 1905.09263): each
symbol of the text (`taste_text`) gets a duration, its state is repeated for as many frames, and a
convolutional stack turns frames into mels and pitch, all at once or (`autoregressive`) one after
the other. The reference decodes with an autoregressive unit LM (`TasteSpeechDecoder`). Everything
is convolutional, so that the look-ahead is bounded and known.
Durations are learned by monotonic alignment (Kim et al. 2020, Glow-TTS, arXiv 2005.11129 §2.2).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.audio.features import MelConfig
from slm_jax.nn.conv import ConvNeXt
from slm_jax.nn.layers import Embedding, LayerNorm, Linear
from slm_jax.tokenizers.taste_text import BEGIN, END, SYMBOLS, Symbols
from slm_jax.tokenizers.vocoder import denormalise_mel, denormalise_pitch

_SPACE = ord(" ")


@dataclasses.dataclass(frozen=True)
class TasteDecoderConfig:
    """Sizes; the default has 5 M parameters.

    Attributes:
      text_width, text_mlp, text_layers: of the stack over the text's symbols.
      told_layers: of the second one over symbols, which has heard the latents.
      width, mlp, layers: of the stack over frames.
      stride: frames that one position of that stack writes.
      autoregressive: whether each position hears the frames before it; then they come in turn.
    """

    text_width: int = 256
    text_mlp: int = 512
    text_layers: int = 5
    told_layers: int = 2
    width: int = 256
    mlp: int = 640
    layers: int = 7
    stride: int = 2
    autoregressive: bool = False

    def __post_init__(self):
        if min(dataclasses.astuple(self)[:-1]) < 1:
            raise ValueError("TasteDecoderConfig: all sizes must be positive")


class Frames(NamedTuple):
    """mel [B, T, n_mels] and pitch [B, T], both normalised, and voicing [B, T], a logit."""

    mel: jax.Array
    pitch: jax.Array
    voicing: jax.Array


class TasteDecoder(nnx.Module):
    """See the module.

    Attributes:
      text_lookahead: symbols of future text that a symbol's state depends on.
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
        self.symbols = Embedding(SYMBOLS, d, rngs=rngs, init=jax.nn.initializers.normal(0.5))
        self.speaker = Linear(speaker_width, d, rngs=rngs)
        self.text = ConvNeXt(d, config.text_mlp, config.text_layers, rngs=rngs)
        self.text_norm = LayerNorm(d)
        self.prior = Linear(d, mel.n_mels, bias=True, rngs=rngs)
        self.latent = Linear(latent, d, bias=True, rngs=rngs)
        self.told = ConvNeXt(d, config.text_mlp, config.told_layers, rngs=rngs)
        self.told_norm = LayerNorm(d)
        self.duration_out = Linear(d, 1, bias=True, rngs=rngs)
        self.stride = config.stride
        entering = config.stride * (d + _POSITION_FEATURES)
        leaving = config.stride * (mel.n_mels + 2)
        self.frame_in = Linear(entering, config.width, bias=True, rngs=rngs)
        self.autoregressive = config.autoregressive
        if self.autoregressive:
            self.before_in = Linear(leaving, _BOTTLENECK, bias=True, rngs=rngs)
            self.before_out = Linear(_BOTTLENECK, config.width, rngs=rngs)
        self.frames = ConvNeXt(
            config.width, config.mlp, config.layers, causal=self.autoregressive, rngs=rngs
        )
        self.frame_norm = LayerNorm(config.width)
        self.frame_out = Linear(config.width, leaving, bias=True, rngs=rngs)
        self.text_lookahead = self.text.lookahead + self.told.lookahead
        self.frame_lookahead = config.stride * (self.frames.lookahead + 1) - 1

    def read(self, ids: jax.Array, speaker: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the text alone says.

        Args:
          ids: int [B, N], 0 is padding.
          speaker: [B, E].

        Returns:
          hidden: [B, N, D].
          prior: [B, N, n_mels], the mel that each symbol expects, by which audio is aligned.
        """
        mask = (ids > 0).astype(speaker.dtype)
        x = self.symbols(ids) + self.speaker(speaker)[:, None]
        hidden = self.text_norm(self.text(x, mask))
        return hidden, self.prior(hidden)

    def tell(
        self, hidden: jax.Array, ids: jax.Array, index: jax.Array, latents: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Adds how the words are said.

        Args:
          hidden: [B, N, D] of `read`.
          ids, index: int [B, N], symbols and the word of each.
          latents: [B, W, L]; zeros say nothing.

        Returns:
          hidden: [B, N, D].
          log_durations: [B, N], of frames.
        """
        mask = (ids > 0).astype(hidden.dtype)
        x = hidden + pick(self.latent(latents), index)
        hidden = self.told_norm(self.told(x, mask))
        return hidden, self.duration_out(hidden)[..., 0]

    def write(
        self, hidden: jax.Array, durations: jax.Array, real: Frames, key: jax.Array
    ) -> Frames:
        """Repeats each symbol's state for its frames and predicts mels and pitch.

        Args:
          hidden: [B, N, D] of `tell`.
          durations: int [B, N], frames of each symbol, 0 for padding.
          real: the frames that are to be predicted, whose voicing is 0 or 1; an autoregressive
            decoder hears the one before each (teacher forcing).
          key: of the dropout on these.

        Returns:
          Frames of the same shape; rows end where their durations do.
        """
        x, mask = self._inputs(hidden, durations, real.pitch.shape[1])
        if self.autoregressive:
            shown = self._together(
                jnp.concatenate([real.mel, real.pitch[..., None], real.voicing[..., None]], axis=-1)
            )
            x += self._heard_before(jnp.pad(shown[:, :-1], ((0, 0), (1, 0), (0, 0))), key)
        return self._frames(self.frames(x, mask))

    def sound(
        self, hidden: jax.Array, durations: jax.Array, frames: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the vocoder reads: natural-log mels [B, T, n_mels], Hz [B, T] and voiced [B, T], 0
        or 1, of T = `frames`; silence behind the end of a row."""
        x, mask = self._inputs(hidden, durations, frames)
        out = self._roll(x) if self.autoregressive else self._frames(self.frames(x, mask))
        inside = jnp.arange(frames)[None] < durations.sum(1, keepdims=True)
        mel = jnp.where(inside[..., None], denormalise_mel(out.mel), jnp.log(1e-5))
        voiced = ((out.voicing > 0) & inside).astype(mel.dtype)
        return mel, denormalise_pitch(jnp.clip(out.pitch, -2.0, 3.0)), voiced

    def _inputs(
        self, hidden: jax.Array, durations: jax.Array, frames: int
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T / stride, width], and [B, T / stride] with 0 behind the end of a row."""
        ends = jnp.cumsum(durations, axis=1)
        time = jnp.arange(frames)
        owner = owners(durations, frames)
        length = jnp.take_along_axis(durations, owner, axis=1)
        since = time - (jnp.take_along_axis(ends, owner, axis=1) - length)
        mask = (time[None, :: self.stride] < ends[:, -1:]).astype(hidden.dtype)
        repeated = pick(hidden, owner)
        x = jnp.concatenate([repeated, _position(since, length)], axis=-1)
        return self.frame_in(self._together(x)), mask

    def _together(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T / stride, stride * D]."""
        rows, frames, width = x.shape
        return x.reshape(rows, frames // self.stride, self.stride * width)

    def _frames(self, x: jax.Array) -> Frames:
        """[..., P, width] -> frames, stride * P of them."""
        out = self.frame_out(self.frame_norm(x))
        out = out.reshape(*out.shape[:-2], out.shape[-2] * self.stride, -1)
        return Frames(out[..., :-2], out[..., -2], out[..., -1])

    def _heard_before(self, shown: jax.Array, key: jax.Array) -> jax.Array:
        """Dropout stays on in use, as in Tacotron 2 (arXiv 1712.05884 §2.2): else a frame learns to
        repeat the one before it."""
        squeezed = jax.nn.relu(self.before_in(shown))
        kept = jax.random.bernoulli(key, 0.5, squeezed.shape)
        return self.before_out(2.0 * squeezed * kept)

    def _roll(self, x: jax.Array) -> Frames:
        """Frame after frame, each hearing the one before as it was made."""
        rows, count, _ = x.shape
        first = jnp.zeros((rows, self.before_in.kernel[...].shape[0]))

        def step(carry, inputs):
            shown, past = carry
            x, t = inputs
            x += self._heard_before(shown, jax.random.fold_in(jax.random.key(0), t))
            out, past = self.frames.step(x, past)
            made = self._frames(out[:, None])
            voiced = (made.voicing > 0).astype(x.dtype)
            parts = [made.mel, made.pitch[..., None], voiced[..., None]]
            shown = self._together(jnp.concatenate(parts, axis=-1))[:, 0]
            return (shown, past), made

        carry = (first, self.frames.start(rows))
        _, made = jax.lax.scan(step, carry, (jnp.moveaxis(x, 1, 0), jnp.arange(count)))
        in_turn = (jnp.moveaxis(part, 0, 1) for part in made)  # [B, P, stride, ...]
        return Frames(*(p.reshape(rows, count * self.stride, *p.shape[3:]) for p in in_turn))


def owners(durations: jax.Array, frames: int) -> jax.Array:
    """durations int [B, N] -> int [B, T], the symbol that each frame belongs to."""
    ends = jnp.cumsum(durations, axis=1)
    owner = jnp.sum(jnp.arange(frames)[None, :, None] >= ends[:, None, :], axis=-1)
    return jnp.minimum(owner, durations.shape[1] - 1)


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, N, D], index int [B, T] -> [B, T, D], as a product: the gradient of a gather is a
    scatter, which XLA:CPU runs one element at a time."""
    return jax.nn.one_hot(index, x.shape[1], dtype=x.dtype) @ x


_POSITION_FEATURES = 6
_BOTTLENECK = 64  # of what an autoregressive decoder hears of the frame before


def _position(since: jax.Array, length: jax.Array) -> jax.Array:
    """Where a frame lies in its symbol [B, T] -> [B, T, 6]."""
    phase = (since + 0.5) / jnp.maximum(length, 1)
    left = length - since
    features = (phase, jnp.sin(jnp.pi * phase), jnp.cos(jnp.pi * phase))
    scales = (jnp.log1p(since), jnp.log1p(jnp.maximum(left, 0)), jnp.log1p(length))
    return jnp.stack([*features, *scales], axis=-1).astype(jnp.float32)


def round_durations(log_durations: jax.Array, ids: jax.Array) -> jax.Array:
    """Frames per symbol, int32 [B, N]: rounded on the running sum, so that errors do not add up;
    every symbol gets at least one frame, padding none."""
    lengths = jnp.where(ids > 0, jnp.maximum(jnp.exp(log_durations), 1.0), 0.0)
    ends = jnp.round(jnp.cumsum(lengths, axis=1))
    return jnp.diff(ends, axis=1, prepend=0).astype(jnp.int32)


def monotonic_alignment(scores: jax.Array, symbols: jax.Array, frames: jax.Array) -> jax.Array:
    """Durations of the best monotonic path.

    Args:
      scores: [B, N, T], log-likelihood of frame t under symbol n.
      symbols: int [B], valid symbols of each row.
      frames: int [B], valid frames; at least as many as symbols.

    Returns:
      int32 [B, N], at least 1 for each valid symbol, summing to `frames`.
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
        came = jnp.take_along_axis(step_moved, at[:, None], axis=1)[:, 0]
        return jnp.where(active & came, at - 1, at), jnp.where(active, at, -1)

    times = jnp.arange(length)
    _, owners = jax.lax.scan(backward, symbols - 1, (moved, times), reverse=True)
    return jax.nn.one_hot(owners, count, dtype=jnp.int32).sum(axis=0)


def word_times(
    durations: np.ndarray, text: Symbols, words: int, seconds_per_frame: float
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
