import numpy as np
import pytest
from scipy import signal

from slm_jax.audio.features import mel_filterbank
from slm_jax.errors import UserError
from slm_jax.evaluation import speakers
from slm_jax.evaluation.speakers import SpeakerEncoder, margins


def test_a_margin_by_hand():
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    originals = np.stack([east, east, north, north])
    voices = ["a", "a", "b", "b"]
    np.testing.assert_allclose(margins(originals, originals, voices), 1)
    # A copy half-way between the voices is no nearer to its own.
    between = np.tile((east + north) / np.sqrt(2), (4, 1))
    np.testing.assert_allclose(margins(between, originals, voices), 0, atol=1e-12)
    np.testing.assert_allclose(margins(originals[::-1], originals, voices), -1)


def test_a_copy_is_never_compared_with_its_own_original():
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(6, 8))
    originals /= np.linalg.norm(originals, axis=1, keepdims=True)
    copies = originals[::-1].copy()
    voices = ["a", "b", "a", "c", "b", "a"]
    found = margins(copies, originals, voices)
    for i in range(6):
        by_voice = {
            name: np.mean(
                [copies[i] @ originals[j] for j in range(6) if voices[j] == name and j != i] or [0]
            )
            for name in "abc"
        }
        own = by_voice.pop(voices[i])
        if voices.count(voices[i]) == 1:
            assert np.isnan(found[i])
        else:
            assert found[i] == pytest.approx(own - np.mean(list(by_voice.values())))


def test_no_margin_without_another_voice_and_none_for_a_failure():
    vectors = np.eye(3)
    assert np.isnan(margins(vectors, vectors, ["a"] * 3)).all()
    failed = vectors.copy()
    failed[0] = np.nan
    assert np.isnan(margins(failed, vectors, ["a", "a", "b"])).tolist() == [True, False, True]


def test_features_are_the_encoders_own():
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    window = np.pad(signal.get_window("hamming", 400), 56)
    _, _, spectrum = signal.spectrogram(
        audio,
        window=window,
        nperseg=512,
        noverlap=352,
        detrend=False,
        scaling="spectrum",
        mode="complex",
    )
    power = np.abs(spectrum * window.sum()) ** 2
    expected = np.log10(power.T @ mel_filterbank(16_000, 512, 40, 0.0, 8000.0) + 1e-10)
    np.testing.assert_allclose(speakers._log_mel(audio), expected, atol=1e-4)


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.onnx"):
        SpeakerEncoder(tmp_path / "nothing.onnx")
