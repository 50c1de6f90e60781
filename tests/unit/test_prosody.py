"""The eight numbers of a word, on words whose prosody is known by construction."""

import jax.numpy as jnp
import numpy as np

from slm_jax.tokenizers.taste_prosody import _DEVIATION, _MEAN, FEATURES, word_prosody
from slm_jax.tokenizers.taste_text import read_text

TEXT = read_text(["ab", "cd"], {})  # BEGIN a b space c d END
DURATIONS = jnp.array([[2, 5, 5, 4, 10, 10, 3]])


def said(pitch, voiced, energy, words=2):
    mel = jnp.broadcast_to(jnp.asarray(energy, jnp.float32)[None, :, None], (1, len(energy), 3))
    raw = word_prosody(
        DURATIONS,
        jnp.asarray(TEXT.ids)[None],
        jnp.asarray(TEXT.words)[None],
        words,
        mel,
        jnp.asarray(pitch, jnp.float32)[None],
        jnp.asarray(voiced, jnp.float32)[None],
    )
    found = np.asarray(raw * _DEVIATION + _MEAN)[0]
    return [dict(zip(FEATURES, word, strict=True)) for word in found], np.asarray(raw)[0]


def test_durations_and_pauses_are_those_of_the_spoken_bytes():
    (first, second), _ = said(np.zeros(50), np.ones(50), np.zeros(50))
    np.testing.assert_allclose(np.exp(first["duration"]), 10, rtol=1e-4)
    np.testing.assert_allclose(np.exp(second["duration"]), 20, rtol=1e-4)
    np.testing.assert_allclose(np.expm1(first["pause"]), 4, rtol=1e-4)
    np.testing.assert_allclose(np.expm1(second["pause"]), 3, rtol=1e-4)


def test_pitch_is_relative_to_the_utterance_and_slopes_have_signs():
    pitch = np.zeros(50)
    pitch[2:12] = np.linspace(0.5, 1.5, 10)  # rises in the first word
    pitch[16:36] = np.linspace(0.5, -0.5, 20)  # falls in the second
    (first, second), _ = said(pitch, np.ones(50), np.zeros(50))
    np.testing.assert_allclose(first["pitch"] - second["pitch"], 1.0, atol=1e-3)
    assert first["slope"] > 0.2 and second["slope"] < -0.2
    shifted, _ = said(pitch + 3, np.ones(50), np.zeros(50))
    np.testing.assert_allclose(shifted[0]["pitch"], first["pitch"], atol=1e-3)


def test_unvoiced_frames_and_energy():
    voiced, energy = np.zeros(50), np.zeros(50)
    voiced[2:7] = 1
    energy[16:36] = 2.0
    (first, second), _ = said(np.full(50, 9.0), voiced, energy)
    np.testing.assert_allclose([first["voicing"], second["voicing"]], [0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(second["energy"] - first["energy"], 2.0, atol=1e-3)
    np.testing.assert_allclose(second["pitch"], 0.0, atol=1e-6)


def test_words_that_are_not_there_are_zero():
    _, raw = said(np.zeros(50), np.ones(50), np.zeros(50), words=4)
    assert np.all(raw[2:] == 0) and np.any(raw[:2] != 0)
