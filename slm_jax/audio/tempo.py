"""Speech made faster or slower at the same pitch, and higher or lower at the same speed.

WSOLA (Verhelst and Roelands 1993): windows of the input are added at a fixed hop of the output,
each taken from where the input goes on most like what has been written so far.
"""

from __future__ import annotations

import numpy as np

from slm_jax.audio.resample import resample

_RATE = 16_000
_HOP = 256  # samples of output a window brings; the window has twice as many, 32 ms
_REACH = 200  # samples that a window may be moved either way: a period of 80 Hz fits


def tempo(audio: np.ndarray, factor: float) -> np.ndarray:
    """Speech at another speed, its pitch kept.

    Args:
      audio: float32 [n], mono, 16 kHz.
      factor: of the speed: 2 is twice as fast and half as long. Speech holds from 0.5 to 2.

    Returns:
      float32 [round(n / factor)]; the input itself at factor 1.
    """
    if not 0 < factor < np.inf:
        raise ValueError(f"a tempo factor is positive, got {factor}")
    if factor == 1:
        return audio
    size = 2 * _HOP
    length = round(len(audio) / factor)
    count = -(-length // _HOP) + 1
    source = np.pad(audio.astype(np.float32), (_REACH + _HOP, 2 * _REACH + 2 * size))
    window = np.hanning(size + 1)[:-1].astype(np.float32)  # adds up to 1 at half its length
    out = np.zeros((count + 1) * _HOP, np.float32)
    follows = source[:size]  # what the input itself goes on with
    for i in range(count):
        # Window i is centred on output sample i * _HOP, and so on the input's i * _HOP * factor.
        at = min(round(i * _HOP * factor), len(audio))
        region = source[at : at + size + 2 * _REACH]
        found = at + (_likest(region, follows) if i else _REACH)
        out[i * _HOP : i * _HOP + size] += window * source[found : found + size]
        follows = source[found + _HOP : found + _HOP + size]
    return out[_HOP : _HOP + length]


def shift_pitch(audio: np.ndarray, semitones: float) -> np.ndarray:
    """Speech at another pitch, its speed kept; formants move with the pitch.

    Args:
      audio: float32 [n], mono, 16 kHz.
      semitones: upwards, 12 an octave.

    Returns:
      float32 [n].
    """
    ratio = 2 ** (semitones / 12)
    longer = tempo(audio, 1 / ratio)
    out = resample(longer, round(_RATE * ratio), _RATE)[: len(audio)]
    return np.pad(out, (0, len(audio) - len(out)))


def _likest(region: np.ndarray, wanted: np.ndarray) -> int:
    """The shift at which `region` correlates best with `wanted`, both of unit size."""
    products = np.correlate(region, wanted)
    sums = np.concatenate([[0.0], np.cumsum(np.square(region, dtype=np.float64))])
    energy = sums[len(wanted) :] - sums[: -len(wanted)]
    return int(np.argmax(products / np.sqrt(np.maximum(energy, 1e-9))))
