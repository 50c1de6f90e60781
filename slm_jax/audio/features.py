"""Spectral features in JAX: STFT and its inverse, mel filters, Whisper's and a vocoder's log-mel.

Everything here is jit-able, works on batches, computes in float32 whatever it is given, and has
finite gradients everywhere (also on digital silence).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

WHISPER_RATE = 16_000
WHISPER_N_FFT = 400
WHISPER_HOP = 160

_HIGHEST_PITCH = 500.0  # Hz; wider smoothing would blur formants
_POWER_FLOOR = 1e-12  # keeps the gradient of sqrt finite; a magnitude of 1e-6 is below 16-bit noise


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Settings of `log_mel`; the defaults are the vocoder's.

    Attributes:
      rate: sample rate of the audio, Hz.
      n_fft: window and transform length, samples.
      hop: samples from one frame to the next.
      n_mels: number of mel bands.
      fmin: lower edge of the first band, Hz.
      fmax: upper edge of the last band, Hz.
    """

    rate: int = 16_000
    n_fft: int = 1024
    hop: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8_000.0


DEFAULT_MEL = MelConfig()


def stft(audio: Float[Array, "B n"], n_fft: int, hop: int) -> Complex[Array, "B T bins"]:
    """Short-time Fourier transform with a periodic Hann window.

    Frame t is centred on sample t * hop; the ends are padded by reflection, as
    `torch.stft(center=True)` does.

    Args:
      audio: [B, n], any length from one sample up.
      n_fft: window and transform length, even.
      hop: samples from one frame to the next.

    Returns:
      complex64 [B, 1 + n // hop, n_fft // 2 + 1].
    """
    half = n_fft // 2
    padded = jnp.pad(audio.astype(jnp.float32), ((0, 0), (half, half)), mode="reflect")
    frames = _frames(padded, n_fft, hop, 1 + audio.shape[1] // hop)
    return jnp.fft.rfft(frames * _hann(n_fft), axis=-1)


def istft(
    spectrum: Complex[Array, "B T bins"], n_fft: int, hop: int, length: int | None = None
) -> Float[Array, "B n"]:
    """Inverse of `stft`: least-squares overlap-add (Griffin & Lim 1984, eq. 6).

    Exact, `istft(stft(x, n_fft, hop), n_fft, hop, n) == x` up to rounding, if hop < n_fft / 2.

    Args:
      spectrum: complex [B, T, n_fft // 2 + 1].
      n_fft: as given to `stft`.
      hop: as given to `stft`.
      length: samples to return, at most (T - 1) * hop + n_fft // 2; by default (T - 1) * hop.

    Returns:
      float32 [B, length].
    """
    frames, half = spectrum.shape[1], n_fft // 2
    length = (frames - 1) * hop if length is None else length
    if length > (frames - 1) * hop + half:
        raise ValueError(f"{frames} frames of hop {hop} do not cover {length} samples")
    window = _hann(n_fft)
    signal = _overlap_add(jnp.fft.irfft(spectrum, n=n_fft, axis=-1) * window, hop)
    weight = _overlap_add(jnp.broadcast_to(window**2, (1, frames, n_fft)), hop)
    kept = slice(half, half + length)
    return signal[:, kept] / jnp.maximum(weight[:, kept], 1e-9)


def magnitude(spectrum: Complex[Array, "*dims"]) -> Float[Array, "*dims"]:
    """|spectrum| with a floor of 1e-6, so that its gradient is finite at zero."""
    return jnp.sqrt(jnp.maximum(_power(spectrum), _POWER_FLOOR))


@functools.lru_cache
def mel_filterbank(
    rate: int,
    n_fft: int,
    n_mels: int,
    fmin: float,
    fmax: float,
    norm: Literal["slaney"] | None = "slaney",
) -> np.ndarray:
    """Triangular filters on Slaney's mel scale (Auditory Toolbox 1998; librosa's default).

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor
    of 6.4). With norm "slaney" each triangle has area 1 over Hz, else its peak is 1.

    Returns:
      float32 [n_fft // 2 + 1, n_mels], read-only.
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), n_mels + 2))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = np.linspace(0.0, rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (upper - lower)
    filters = filters.astype(np.float32)
    filters.flags.writeable = False
    return filters


@functools.partial(jax.jit, static_argnames="n_mels")
def whisper_log_mel(audio: Float[Array, "B n"], n_mels: int = 80) -> Float[Array, "B n_mels T"]:
    """Whisper's input features, those of transformers' `WhisperFeatureExtractor`.

    log10 mel power, clamped per example to 8 below its maximum, then (x + 4) / 4. The clamp and
    the reflection at the end see what they are given: pad to 480,000 samples (30 s) for the
    reference's exact numbers on shorter audio.

    Args:
      audio: [B, n] at 16 kHz, any n from 160 up.
      n_mels: 80, or 128 for large-v3.

    Returns:
      float32 [B, n_mels, n // 160].
    """
    spectrum = stft(audio, WHISPER_N_FFT, WHISPER_HOP)[:, :-1]
    filters = mel_filterbank(WHISPER_RATE, WHISPER_N_FFT, n_mels, 0.0, WHISPER_RATE / 2)
    mel = jnp.log10(jnp.maximum(_matmul(_power(spectrum), filters), 1e-10))
    mel = jnp.maximum(mel, mel.max(axis=(1, 2), keepdims=True) - 8.0)
    return (mel.swapaxes(1, 2) + 4.0) / 4.0


@functools.partial(jax.jit, static_argnames="config")
def log_mel(audio: Float[Array, "B n"], config: MelConfig = DEFAULT_MEL) -> Float[Array, "B T m"]:
    """Natural log of the mel magnitude spectrum, floored at 1e-5, as vocoders use it (HiFi-GAN).

    Args:
      audio: [B, n] at `config.rate`.
      config: the transform and the bands.

    Returns:
      float32 [B, 1 + n // hop, n_mels]; frame t is centred on sample t * hop.
    """
    c = config
    spectrum = stft(audio, c.n_fft, c.hop)
    filters = mel_filterbank(c.rate, c.n_fft, c.n_mels, c.fmin, c.fmax)
    return jnp.log(jnp.maximum(_matmul(magnitude(spectrum), filters), 1e-5))


@functools.partial(jax.jit, static_argnames="config")
def log_envelope(
    audio: Float[Array, "B n"], hertz: Float[Array, "B T"], config: MelConfig
) -> Float[Array, "B T m"]:
    """`log_mel` without harmonics: the spectrum is averaged over one pitch wide before the bands.

    The smoothing step of CheapTrick (Morise 2015, Speech Communication 67). What is left is what
    the vocal tract does; pitch is another feature, and a decoder need not write it twice.

    Args:
      audio: [B, n] at `config.rate`.
      hertz: pitch of each frame, any plausible width where there is none.
      config: the transform and the bands.

    Returns:
      float32 [B, T, n_mels], T = 1 + n // hop.
    """
    c = config
    power = _power(stft(audio, c.n_fft, c.hop))
    width = jnp.clip(hertz * c.n_fft / c.rate, 1.0, _HIGHEST_PITCH * c.n_fft / c.rate)[
        ..., None
    ]  # in bins
    reach = int(_HIGHEST_PITCH * c.n_fft / c.rate / 2 + 1)
    padded = jnp.pad(power, ((0, 0), (0, 0), (reach, reach)), mode="reflect")
    smooth = jnp.zeros_like(power)
    for shift in range(-reach, reach + 1):
        weight = jnp.clip(width / 2 + 0.5 - abs(shift), 0.0, 1.0) / width
        smooth += weight * padded[..., reach + shift : reach + shift + power.shape[-1]]
    filters = mel_filterbank(c.rate, c.n_fft, c.n_mels, c.fmin, c.fmax)
    bands = _matmul(jnp.sqrt(jnp.maximum(smooth, _POWER_FLOOR)), filters)
    return jnp.log(jnp.maximum(bands, 1e-5))


def _power(spectrum: jax.Array) -> jax.Array:
    return spectrum.real**2 + spectrum.imag**2


def _matmul(x: jax.Array, y: np.ndarray) -> jax.Array:
    # TPUs multiply in bfloat16 by default, which is far too coarse under a logarithm.
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _hann(n: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)).astype(np.float32)


def _frames(x: jax.Array, n_fft: int, hop: int, count: int) -> jax.Array:
    """[B, n] -> [B, count, n_fft]."""
    # Shifted slices of hop-sized blocks, not a gather, whose gradient would be a slow scatter.
    shifts = -(-n_fft // hop)
    needed = (count + shifts - 1) * hop
    x = jnp.pad(x[:, :needed], ((0, 0), (0, max(0, needed - x.shape[1]))))
    blocks = x.reshape(x.shape[0], -1, hop)
    shifted = [blocks[:, s : s + count] for s in range(shifts)]
    return jnp.concatenate(shifted, axis=-1)[..., :n_fft]


def _overlap_add(frames: jax.Array, hop: int) -> jax.Array:
    """[B, T, n_fft] -> [B, (T + ceil(n_fft / hop) - 1) * hop], the transpose of `_frames`."""
    batch, count, n_fft = frames.shape
    shifts = -(-n_fft // hop)
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, shifts * hop - n_fft)))
    blocks = frames.reshape(batch, count, shifts, hop)
    total = sum(
        jnp.pad(blocks[:, :, s], ((0, 0), (s, shifts - 1 - s), (0, 0))) for s in range(shifts)
    )
    return total.reshape(batch, -1)


_MEL_BREAK_HZ = 1000.0
_MELS_PER_HZ = 3.0 / 200.0
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _MEL_BREAK_HZ:
        return hz * _MELS_PER_HZ
    return _MEL_BREAK_HZ * _MELS_PER_HZ + np.log(hz / _MEL_BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    mel_break = _MEL_BREAK_HZ * _MELS_PER_HZ
    return np.where(
        mels < mel_break,
        mels / _MELS_PER_HZ,
        _MEL_BREAK_HZ * np.exp(_LOG_STEP * (mels - mel_break)),
    )
