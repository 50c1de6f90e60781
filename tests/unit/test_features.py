import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio.features import (
    MelConfig,
    istft,
    log_envelope,
    log_mel,
    magnitude,
    mel_filterbank,
    stft,
    whisper_log_mel,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "n"), [(512, 128, 4000), (400, 160, 1601), (64, 15, 333)])
def test_stft_is_the_windowed_dft_of_centred_frames(n_fft, hop, n):
    audio = noise(2, n)
    spectrum = np.asarray(stft(audio, n_fft, hop))
    assert spectrum.shape == (2, 1 + n // hop, n_fft // 2 + 1)
    padded = np.pad(audio.astype(np.float64), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    for t in (0, 1, n // hop):
        expected = np.fft.rfft(padded[:, t * hop : t * hop + n_fft] * window)
        np.testing.assert_allclose(spectrum[:, t], expected, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop", "n"), [(64, 16, 97), (64, 24, 300), (50, 20, 40)])
def test_istft_inverts_stft(n_fft, hop, n):
    audio = noise(2, n)
    there_and_back = jax.jit(lambda x: istft(stft(x, n_fft, hop), n_fft, hop, n))
    np.testing.assert_allclose(there_and_back(audio), audio, atol=1e-6)


def test_istft_refuses_samples_that_no_frame_covers():
    spectrum = stft(noise(1, 640), 64, 16)
    assert istft(spectrum, 64, 16).shape == (1, 640)
    with pytest.raises(ValueError, match="do not cover"):
        istft(spectrum, 64, 16, 640 + 33)


def test_log_mel_of_a_tone_peaks_at_its_band_and_of_silence_is_the_floor():
    config = MelConfig(n_fft=512, hop=128, n_mels=40)
    tone = np.sin(2 * np.pi * 1000.0 * np.arange(8000) / 16_000, dtype=np.float32)
    mel = np.asarray(log_mel(np.stack([tone, np.zeros_like(tone)]), config))
    assert mel.shape == (2, 1 + 8000 // 128, 40)
    weights = mel_filterbank(16_000, 512, 40, 0.0, 8000.0)
    assert (mel[0, 10:-10].argmax(axis=-1) == weights[1000 * 512 // 16_000].argmax()).all()
    np.testing.assert_allclose(mel[1], np.log(1e-5), rtol=1e-6)


@pytest.mark.parametrize("n", [160, 1000, 4800])
def test_whisper_log_mel_has_one_frame_per_hop_and_spans_two(n):
    mel = np.asarray(whisper_log_mel(noise(2, n)))
    assert mel.shape == (2, 80, n // 160)
    assert (mel.max(axis=(1, 2)) - mel.min(axis=(1, 2)) <= 2 + 1e-5).all()  # 8 decades / 4


def test_whisper_log_mel_clamps_each_example_by_its_own_maximum():
    loud, quiet = noise(1, 1600), noise(1, 1600, seed=1) * 1e-3
    together = whisper_log_mel(np.concatenate([loud, quiet]))
    np.testing.assert_allclose(together[1:], whisper_log_mel(quiet), atol=1e-5)


@pytest.mark.parametrize("audio", [np.zeros((1, 800), np.float32), noise(1, 800)])
def test_gradients_are_finite_even_on_silence(audio):
    config = MelConfig(n_fft=128, hop=32, n_mels=20)

    def total(x):
        spectrum = stft(x, 128, 32)
        waves = istft(spectrum, 128, 32)
        return log_mel(x, config).sum() + magnitude(spectrum).sum() + (waves**2).sum()

    assert jnp.isfinite(jax.jit(jax.grad(total))(audio)).all()
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: whisper_log_mel(x).sum()))(audio)).all()


def test_the_envelope_of_pulses_has_formants_but_no_harmonics():
    """Pulses at 200 Hz through a resonance at 2 kHz: `log_mel` shows each harmonic, the envelope
    only the resonance, whatever the pitch."""
    config, time = MelConfig(n_fft=512, n_mels=40), np.arange(16_000) / 16_000

    def voice(pitch):
        harmonics = pitch * np.arange(1, int(8000 / pitch))
        gains = 1 / (1 + ((harmonics - 2000) / 400) ** 2)
        return np.sum(gains[:, None] * np.cos(2 * np.pi * harmonics[:, None] * time), axis=0)

    low, high = (voice(pitch) * np.sqrt(pitch) / 200 for pitch in (160.0, 240.0))
    pitches = np.array([160.0, 240.0])[:, None] * np.ones((1, 63))
    shown = np.asarray(log_envelope(np.stack([low, high]).astype(np.float32), pitches, config))
    rippled = np.asarray(log_mel(np.stack([low, high]).astype(np.float32), config))
    centre = slice(10, -10)
    bands = slice(4, 36)  # 300 Hz to 6 kHz
    between = np.abs(shown[0] - shown[1])[centre, bands].max()
    assert between < 0.35 < 1.0 < np.abs(rippled[0] - rippled[1])[centre, bands].max()
    weights = mel_filterbank(16_000, 512, 40, 0.0, 8000.0)
    assert abs(shown[0, 30].argmax() - weights[2000 * 512 // 16_000].argmax()) <= 1
