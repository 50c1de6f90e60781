"""The anchor ladder: codecs and damages that everybody knows, measured beside every tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError
from slm_jax.evaluation.degrade import opus, white_noise

_CODEC2_RATE = 8_000  # Hz that Codec2 works at
_LOW_PASS = 3_500.0  # Hz

Anchor = Callable[[np.ndarray], tuple[np.ndarray, float | None]]


def codec2(audio: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Through Codec2 (Rowe, `pycodec2`) and back. It codes 8 kHz: nothing above 4 kHz is left.

    Args:
      audio: float32 [n], 16 kHz mono.
      rate: one of Codec2's modes, bit/s: 3200, 2400, 1600, 1400, 1300, 1200, 700.

    Returns:
      float32 [n], late by Codec2's own delay of 19 to 27 ms; and the bits of its frames.

    Raises:
      UserError: pycodec2 is not installed.
    """
    try:
        import pycodec2
    except ImportError as missing:
        raise UserError("pycodec2 is not installed", "pip install 'slm_jax[ladder]'") from missing
    coder = pycodec2.Codec2(rate)
    frame = coder.samples_per_frame()
    low = resample(audio, AUDIO_RATE, _CODEC2_RATE)
    low = np.pad(low, (0, -len(low) % frame))
    pcm = np.rint(np.clip(low, -1, 1) * 32767).astype(np.int16).reshape(-1, frame)
    spoken = np.concatenate([coder.decode(coder.encode(one)) for one in pcm])
    decoded = resample(spoken.astype(np.float32) / 32768, _CODEC2_RATE, AUDIO_RATE)[: len(audio)]
    bits = len(pcm) * coder.bits_per_frame()
    return np.pad(decoded, (0, len(audio) - len(decoded))), bits


def low_pass(audio: np.ndarray, limit: float = _LOW_PASS) -> np.ndarray:
    """Nothing above `limit` Hz: a brick wall in the spectrum, without delay. float32 [n]."""
    spectrum = np.fft.rfft(audio)
    spectrum[np.fft.rfftfreq(len(audio), 1 / AUDIO_RATE) > limit] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


# Name -> audio to (audio, bits), bits None where nothing is coded.
LADDER: Mapping[str, Anchor] = {
    "original": lambda audio: (audio, None),
    "Opus 24 kbit/s": lambda audio: opus(audio, 24_000),
    "Opus 12 kbit/s": lambda audio: opus(audio, 12_000),
    "Opus 6 kbit/s": lambda audio: opus(audio, 6_000),
    "Codec2 3.2 kbit/s": lambda audio: codec2(audio, 3_200),
    "Codec2 1.2 kbit/s": lambda audio: codec2(audio, 1_200),
    "low-pass 3.5 kHz": lambda audio: (low_pass(audio), None),
    "noise 20 dB": lambda audio: (white_noise(audio, 20.0), None),
}
