"""Fundamental frequency by autocorrelation and dynamic programming, batched.

Boersma 1993, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise
ratio of a sampled sound" (Praat's default method), with his default costs. The path is searched
over a dense grid of pitches instead of local maxima, which keeps every shape static.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class PitchConfig:
    """Settings of `pitch`; the costs are Praat's defaults (Boersma 1993, §4).

    Attributes:
      rate, hop: samples a second, and from one frame to the next.
      floor, ceiling: Hz, of what is looked for; the window is three periods of the floor long.
      bins: grid points an octave.
      voicing: strength that a frame without pitch has in the path, as a correlation.
      silence: share of the loudest peak below which frames are taken for silence.
      octave_cost, jump_cost, voicing_cost: of low pitches, of a jump by an octave, and of turning
        voicing on or off, the last two for frames 10 ms apart.
    """

    rate: int = 16_000
    hop: int = 256
    floor: float = 65.0
    ceiling: float = 500.0
    bins: int = 36
    voicing: float = 0.45
    silence: float = 0.03
    octave_cost: float = 0.01
    jump_cost: float = 0.35
    voicing_cost: float = 0.14

    def __post_init__(self):
        if not 0 < self.floor < self.ceiling < self.rate / 4:
            raise ValueError("PitchConfig: floor and ceiling must lie in (0, rate / 4)")
        if min(self.hop, self.bins) < 1:
            raise ValueError("PitchConfig: hop and bins must be positive")


DEFAULT_PITCH = PitchConfig()
_UPSAMPLED = 4  # points of the autocorrelation a sample: 16 kHz lags alone are 3 % apart at 500 Hz


@functools.partial(jax.jit, static_argnames="config")
def pitch(
    audio: Float[Array, "B n"], config: PitchConfig = DEFAULT_PITCH
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Pitch of speech.

    Args:
      audio: [B, n] at `config.rate`.
      config: of the search.

    Returns:
      hertz: [B, 1 + n // hop], frame t centred on sample t * hop; where a frame is unvoiced, that
        of the best voiced candidate, which means nothing.
      voiced: bool [B, 1 + n // hop].
    """
    window = int(3 * config.rate / config.floor) // 2 * 2
    frames = 1 + audio.shape[1] // config.hop
    padded = jnp.pad(audio.astype(jnp.float32), ((0, 0), (window // 2, window // 2 + config.hop)))
    starts = np.arange(frames) * config.hop
    pieces = padded[:, starts[:, None] + np.arange(window)]
    pieces = pieces - pieces.mean(axis=-1, keepdims=True)
    peaks = jnp.max(jnp.abs(pieces), axis=-1)
    loudness = peaks / jnp.maximum(peaks.max(axis=1, keepdims=True), 1e-9)

    hann = np.hanning(window).astype(np.float32)
    size = 2 ** int(np.ceil(np.log2(1.5 * window)))
    own = _autocorrelation(jnp.asarray(hann), size)
    correlation = _autocorrelation(pieces * hann, size)
    floor = 1e-9 * window
    normalised = correlation / (correlation[..., :1] + floor) * (own[0] / jnp.maximum(own, 1e-3))

    grid = _grid(config)
    lags = config.rate / grid * _UPSAMPLED
    low = np.floor(lags).astype(int)
    share = (lags - low).astype(np.float32)
    heard = normalised[..., low] * (1 - share) + normalised[..., low + 1] * share
    heard = jnp.clip(heard, -1.0, 1.0)
    voiced = heard - config.octave_cost * np.log2(config.ceiling / grid).astype(np.float32)
    quiet = 2.0 - loudness / (config.silence / (1.0 + config.voicing))
    unvoiced = config.voicing + jnp.maximum(0.0, quiet)
    path = jax.vmap(functools.partial(_best_path, config=config))(voiced, unvoiced)
    best = jnp.where(path < len(grid), path, jnp.argmax(voiced, axis=-1))
    return _refine(heard, best, grid), path < len(grid)


def _grid(config: PitchConfig) -> np.ndarray:
    count = int(np.log2(config.ceiling / config.floor) * config.bins)
    return config.floor * 2.0 ** (np.arange(count + 1) / config.bins)


def _autocorrelation(x: jax.Array, size: int) -> jax.Array:
    """x [..., n] -> [..., lags], `_UPSAMPLED` points a sample (band-limited interpolation)."""
    power = jnp.abs(jnp.fft.rfft(x, size)) ** 2
    power = power.at[..., -1].multiply(0.5)  # the last bin of the short transform is shared
    lags = jnp.fft.irfft(power, size * _UPSAMPLED)
    return lags[..., : size * _UPSAMPLED // 2]


def _best_path(voiced: jax.Array, unvoiced: jax.Array, config: PitchConfig) -> jax.Array:
    """voiced [T, N], unvoiced [T] -> int [T], N for unvoiced (Viterbi)."""
    count = voiced.shape[1]
    scale = 0.01 * config.rate / config.hop
    steps = np.abs(np.arange(count)[:, None] - np.arange(count)) / config.bins
    cost = np.full((count + 1, count + 1), config.voicing_cost * scale, np.float32)
    cost[:count, :count] = config.jump_cost * scale * steps
    cost[count, count] = 0.0
    scores = jnp.concatenate([voiced, unvoiced[:, None]], axis=1)

    def forward(total, score):
        reached = total[:, None] - cost
        return reached.max(axis=0) + score, reached.argmax(axis=0)

    total, came = jax.lax.scan(forward, scores[0], scores[1:])
    last = jnp.argmax(total)
    _, path = jax.lax.scan(lambda at, back: (back[at], at), last, came, reverse=True)
    first = jnp.where(len(came) > 0, came[0][path[0]], last) if len(came) else last
    return jnp.concatenate([first[None], path])


def _refine(heard: jax.Array, best: jax.Array, grid: np.ndarray) -> jax.Array:
    """A parabola through the best grid point and its neighbours, in log frequency."""
    inner = jnp.clip(best, 1, len(grid) - 2)

    def at(shift):
        return jnp.take_along_axis(heard, (inner + shift)[..., None], axis=-1)[..., 0]

    left, middle, right = at(-1), at(0), at(1)
    curve = 2 * middle - left - right
    peaked = (curve > 1e-6) & (middle >= left) & (middle >= right)
    offset = jnp.where(peaked, 0.5 * (right - left) / jnp.where(peaked, curve, 1.0), 0.0)
    step = float(np.log2(grid[1] / grid[0]))
    return jnp.where(
        best == inner,
        grid[0] * 2.0 ** ((inner + jnp.clip(offset, -0.5, 0.5)) * step),
        jnp.asarray(grid, jnp.float32)[best],
    )
