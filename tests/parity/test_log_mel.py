"""Whisper's features against transformers' WhisperFeatureExtractor (its NumPy path, float64)."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from slm_jax.audio import decode
from slm_jax.audio.features import mel_filterbank, whisper_log_mel

TOLERANCE = 1e-4
WINDOW = 480_000


def reference(audio, n_mels):
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor._np_extract_fbank_features(audio[None], "cpu")[0]


def padded(audio):
    return np.pad(audio[:WINDOW], (0, max(0, WINDOW - len(audio))))


@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize("bands", [(16_000, 400, 80, 0.0, 8e3), (24_000, 1024, 100, 50.0, 11e3)])
def test_mel_filters_are_transformers(bands, norm):
    rate, n_fft, n_mels, fmin, fmax = bands
    expected = mel_filter_bank(
        1 + n_fft // 2, n_mels, fmin, fmax, rate, norm=norm, mel_scale="slaney"
    )
    np.testing.assert_allclose(mel_filterbank(*bands, norm=norm), expected, atol=1e-6)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_transformers_on_sweep_noise_and_silence(n_mels):
    t = np.arange(48_000) / 16_000
    rng = np.random.default_rng(0)
    audio = 0.5 * np.sin(2 * np.pi * (100 + 1200 * t) * t) * (t % 1 < 0.7)
    audio = (audio + rng.normal(0, 1e-3, t.shape)).astype(np.float32)
    for x in (audio, audio[:20_000], padded(audio)):
        error = np.abs(whisper_log_mel(x[None], n_mels)[0] - reference(x, n_mels)).max()
        assert error <= TOLERANCE


@pytest.mark.slow  # downloads the prompts
@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_transformers_on_real_speech(n_mels):
    from data_pipelines import fetch

    prompts = sorted(fetch.prompts("en").rglob("*.g722"))
    assert prompts
    for path in prompts[:: len(prompts) // 6]:
        audio = padded(decode.load(path))
        theirs = WhisperFeatureExtractor(feature_size=n_mels)(
            audio, sampling_rate=16_000, return_tensors="np"
        ).input_features[0]
        ours = whisper_log_mel(audio[None], n_mels)[0]
        assert np.abs(ours - theirs).max() <= TOLERANCE, path
        assert np.abs(ours - reference(audio, n_mels)).max() <= TOLERANCE, path
