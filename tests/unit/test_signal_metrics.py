"""Signal metrics: what they say of copies, delays, noise, silence, and of what cannot be judged."""

import numpy as np
import pytest

pytest.importorskip("pystoi")
pytest.importorskip("librosa")

from slm_jax.evaluation.tokenizers import signal

RATE = 16_000


def voice(seconds=1.5, hertz=120.0, seed=0):
    """A gliding harmonic tone with syllables: voiced, and nothing a metric calls silence."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * hertz * (time + 0.1 * time**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).normal(size=len(time)) * 0.01
    return ((tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time)) + noise) * 0.1).astype(np.float32)


def test_a_copy_is_perfect_and_noise_is_heard():
    audio = voice()
    same = signal.compare(audio, audio)
    assert set(same) == set(signal.METRICS)
    assert same["mel"] == same["stft"] == same["delay"] == same["f0_rmse_cents"] == 0
    assert same["stoi"] == pytest.approx(1, abs=1e-4) and same["duration_ratio"] == 1
    assert same["si_sdr"] > 100
    rng = np.random.default_rng(1)
    noise = rng.normal(size=len(audio)) * np.sqrt(np.mean(audio**2) / 100)
    noisy = signal.compare(audio, (audio + noise).astype(np.float32))
    assert noisy["si_sdr"] == pytest.approx(20, abs=0.3)
    assert noisy["mel"] > 0.1 and noisy["stoi"] < same["stoi"]


@pytest.mark.parametrize("late", [-700, -1, 0, 137, 1600])
def test_a_delay_is_taken_out_and_reported(late):
    audio = voice()
    moved = np.pad(audio, (late, 0)) if late >= 0 else audio[-late:]
    found = signal.compare(audio, moved)
    assert found["delay"] == late / RATE
    assert found["si_sdr"] > (100 if late >= 0 else 10)  # what was cut off at the front is lost


@pytest.mark.parametrize("late", [0, 160])
def test_a_delay_is_found_where_the_phase_is_lost(late):
    """As of a codec that writes magnitudes: the waves hardly correlate anywhere."""
    audio = voice()
    window, hop = np.hanning(320), 80
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 320), 320)[::hop]
    spectra = np.abs(np.fft.rfft(frames * window))
    turns = np.random.default_rng(0).uniform(0, 2 * np.pi, spectra.shape)
    written = np.fft.irfft(spectra * np.exp(1j * turns)) * window
    said = np.zeros(len(audio) + 1280)
    for number, frame in enumerate(written):
        said[number * hop : number * hop + 320] += frame
    said = np.pad(said[320 : 320 + len(audio)], (late, 0)).astype(np.float32)
    _, found = signal.align(audio, said)
    assert abs(found - late) <= 32


def test_louder_is_as_near_by_si_sdr_and_higher_is_heard_as_cents():
    audio = voice()
    assert signal.si_sdr(audio, 0.3 * audio) > 60
    found = signal.pitch_agreement(voice(), voice(hertz=120.0 * 2 ** (100 / 1200)))
    assert found["f0_rmse_cents"] == pytest.approx(100, abs=5)
    assert found["f0_correlation"] > 0.95 and found["voicing_error"] < 0.05


def test_mel_distance_by_hand():
    """Two tones of constant level: both differences of a bin are known."""
    audio = voice()
    halved = signal.stft_distance(audio, 0.5 * audio)
    spectra = [signal._magnitudes(audio, window) for window in (2048, 512)]
    expected = 0.0
    for spectrum in spectra:
        logs = (
            2 * np.log10(np.maximum(spectrum, 1e-5)),
            2 * np.log10(np.maximum(spectrum / 2, 1e-5)),
        )
        expected += np.mean(np.abs(logs[0] - logs[1])) + np.mean(spectrum / 2)
    assert halved == pytest.approx(expected, rel=1e-5)


def test_silence_is_not_scored():
    audio, silence = voice(), np.zeros(24_000, np.float32)
    found = signal.compare(silence, silence)
    assert np.isnan(found["si_sdr"]) and np.isnan(found["f0_correlation"])
    assert np.isnan(found["pesq_wb"]) and found["mel"] == 0
    assert np.isnan(signal.compare(audio, silence)["si_sdr"])


def test_pesq_of_a_copy_is_its_ceiling():
    pytest.importorskip("pesq")
    assert signal.pesq_wb(voice(), voice()) == pytest.approx(4.644, abs=0.01)
