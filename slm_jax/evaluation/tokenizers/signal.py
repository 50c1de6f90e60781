"""How near decoded speech comes to the recording: the signal metrics of Codec-SUPERB and beside it.

`mel` and `stft` follow `SoundCodec/metrics.py` of Codec-SUPERB (Wu et al. 2024, arXiv 2409.14085);
PESQ is `pesq`, STOI and ESTOI are `pystoi`, pitch is librosa's pyin. Unlike in the benchmark, a
codec's delay is taken out first and reported, and a metric that fails is NaN, not a score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from slm_jax.audio.features import mel_filterbank
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError

try:
    import librosa
    import pystoi
except ImportError as missing:
    raise UserError(
        f"a judge of signals is not installed: {missing}", "pip install 'slm_jax[eval]'"
    ) from missing
try:
    import pesq  # has no wheels: it asks for a C compiler, which not every machine has
except ImportError:
    pesq = None

MOST_DELAY = 0.1  # seconds that a codec may be late or early
_MELS = ((150, 2048), (80, 512))  # bands and window of each mel, the hop a quarter of the window
_WINDOWS = (2048, 512)
_FLOOR = 1e-5
_F0_HOP = 160
_SAME_WAVE = 0.5  # correlation from which on two signals are the same wave
_BAND_WINDOW, _BAND_HOP = 256, 16  # samples; the hop is how exact a delay is then


def align(reference: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, int]:
    """Takes a delay of at most `MOST_DELAY` out.

    By the waves if these correlate; else, as of codecs that do not keep the phase, by the loudness
    of bands over time, to a millisecond: waves would then correlate best at any peak of the pitch.

    Args:
      reference, decoded: float32 [n], [m], 16 kHz mono.

    Returns:
      float32 [n], the decoded audio moved to where it correlates best, zero padded; and by how many
      samples it was late (negative: early).
    """
    late, alike = _lag(reference[None], decoded[None], int(MOST_DELAY * AUDIO_RATE))
    if alike < _SAME_WAVE:  # the phase is not kept: what remains are loudnesses over time
        bands = (_loudness(audio) for audio in (reference, decoded))
        late = _lag(*bands, int(MOST_DELAY * AUDIO_RATE / _BAND_HOP))[0] * _BAND_HOP
    moved = decoded[late:] if late >= 0 else np.pad(decoded, (-late, 0))
    moved = moved[: len(reference)]
    return np.pad(moved, (0, len(reference) - len(moved))), late


def _lag(reference: np.ndarray, decoded: np.ndarray, limit: int) -> tuple[int, float]:
    """Of signals [C, n] and [C, m]: the lag of at most `limit` at which they correlate best, all
    channels together, and the correlation there."""
    size = 1 << int(np.ceil(np.log2(max(reference.shape[1], decoded.shape[1]) + limit + 1)))
    spectra = np.conj(np.fft.rfft(reference, size)) * np.fft.rfft(decoded, size)
    correlation = np.fft.irfft(spectra.sum(0), size)
    lags = np.concatenate([np.arange(limit + 1), np.arange(-limit, 0)])
    best = int(lags[np.argmax(correlation[lags])])
    power = np.sqrt(np.sum(reference**2, dtype=float) * np.sum(decoded**2, dtype=float))
    return best, float(correlation[best] / max(power, 1e-12))


def _loudness(audio: np.ndarray) -> np.ndarray:
    """Log magnitudes of bands of 62.5 Hz less their means: float [129, n / _BAND_HOP]."""
    padded = np.pad(audio, _BAND_WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _BAND_WINDOW)[::_BAND_HOP]
    bands = np.log(np.abs(np.fft.rfft(frames * np.hanning(_BAND_WINDOW))).T + 1e-3)
    return bands - bands.mean(axis=1, keepdims=True)


def mel_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Codec-SUPERB's `mel`: over two resolutions, the mean difference of log10 power mels plus that
    of magnitude mels. Both float32 [n]."""
    total = 0.0
    for bands, window in _MELS:
        filters = mel_filterbank(AUDIO_RATE, window, bands, 0.0, AUDIO_RATE / 2)
        total += _distance(
            _magnitudes(reference, window) @ filters, _magnitudes(decoded, window) @ filters
        )
    return total


def stft_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Codec-SUPERB's `stft`: the same of magnitude spectra. Both float32 [n]."""
    return sum(
        _distance(_magnitudes(reference, window), _magnitudes(decoded, window))
        for window in _WINDOWS
    )


def si_sdr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508 eq.
    5), both without their means. Says little of codecs that do not keep the waveform."""
    target, estimate = (
        x.astype(np.float64) - x.mean(dtype=np.float64) for x in (reference, decoded)
    )
    energy = target @ target
    if energy == 0 or not estimate.any():
        return np.nan
    projected = (estimate @ target / energy) * target
    noise = estimate - projected
    return float(10 * np.log10((projected @ projected) / max(noise @ noise, 1e-12 * energy)))


def pesq_wb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Wide-band PESQ (ITU-T P.862.2); NaN where it hears no utterance, or is not installed."""
    if pesq is None or not (reference.any() and decoded.any()):
        return np.nan
    try:
        return float(pesq.pesq(AUDIO_RATE, reference, decoded, "wb"))
    except pesq.PesqError:
        return np.nan


def stoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al. 2011)."""
    return _stoi(reference, decoded, extended=False)


def estoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Extended STOI (Jensen and Taal 2016)."""
    return _stoi(reference, decoded, extended=True)


def _stoi(reference: np.ndarray, decoded: np.ndarray, extended: bool) -> float:
    # With less than 30 frames of speech pystoi warns and returns 1e-5, which is no measurement.
    value = float(pystoi.stoi(reference, decoded, AUDIO_RATE, extended=extended))
    return np.nan if value <= 1e-5 else value


def pitch_agreement(reference: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    """Pitch on the frames that are voiced in both, by pyin (Mauch and Dixon 2014), 60 to 500 Hz.

    Returns:
      "f0_correlation" of log pitch, "f0_rmse_cents", and "voicing_error": the share of frames that
      are voiced in one alone. NaN with fewer than ten frames in common.
    """
    ours, theirs = (_pitch(x) for x in (reference, decoded))
    voiced, said = np.isfinite(ours), np.isfinite(theirs)
    both = voiced & said
    found = {"voicing_error": float(np.mean(voiced != said))}
    if both.sum() < 10:
        return found | {"f0_correlation": np.nan, "f0_rmse_cents": np.nan}
    a, b = 1200 * np.log2(ours[both]), 1200 * np.log2(theirs[both])
    flat = a.std() == 0 or b.std() == 0
    return found | {
        "f0_correlation": np.nan if flat else float(np.corrcoef(a, b)[0, 1]),
        "f0_rmse_cents": float(np.sqrt(np.mean((a - b) ** 2))),
    }


_SINGLE: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mel": mel_distance,
    "stft": stft_distance,
    "si_sdr": si_sdr,
    "pesq_wb": pesq_wb,
    "stoi": stoi,
    "estoi": estoi,
}
METRICS = (*_SINGLE, "f0_correlation", "f0_rmse_cents", "voicing_error", "delay", "duration_ratio")


def compare(reference: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    """All of `METRICS`.

    Args:
      reference, decoded: float32 [n] and [m], 16 kHz mono, not empty.

    Returns:
      Each metric; "delay" in seconds, "duration_ratio" m / n before anything is cut.
    """
    moved, late = align(reference, decoded)
    found = {name: metric(reference, moved) for name, metric in _SINGLE.items()}
    found |= pitch_agreement(reference, moved)
    return found | {"delay": late / AUDIO_RATE, "duration_ratio": len(decoded) / len(reference)}


def _pitch(audio: np.ndarray) -> np.ndarray:
    hertz, _, _ = librosa.pyin(
        audio.astype(np.float64), fmin=60, fmax=500, sr=AUDIO_RATE, hop_length=_F0_HOP
    )
    return hertz


def _magnitudes(audio: np.ndarray, window: int) -> np.ndarray:
    """float [frames, window / 2 + 1] under a periodic Hann window, hop a quarter of it, centred."""
    padded = np.pad(audio, window // 2, mode="reflect" if len(audio) > window // 2 else "constant")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 4]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    one, other = (2 * np.log10(np.maximum(x, _FLOOR)) for x in (a, b))
    return float(np.mean(np.abs(one - other)) + np.mean(np.abs(a - b)))
