"""Damage of known size: measured noise, bands, durations, pitch, delay."""

import numpy as np
import pytest

from slm_jax.evaluation import degrade

RATE = 16_000


def tone(hertz, seconds=2.0, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype("f4")


def power(audio):
    return np.mean(np.square(audio, dtype=np.float64))


def pitch(audio):
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return np.argmax(spectrum) * RATE / len(audio)


def test_noise_is_ten_decibels_below_the_signal():
    audio = tone(440)
    noise = degrade.white_noise(audio) - audio
    assert 10 * np.log10(power(audio) / power(noise)) == pytest.approx(10, abs=0.1)
    half = len(noise) // 2  # white: as much power above 4 kHz as below
    halves = np.abs(np.fft.rfft(noise))[1:half] ** 2
    assert halves[: half // 2].sum() / halves[half // 2 :].sum() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(degrade.white_noise(audio), degrade.white_noise(audio))


@pytest.mark.parametrize(("name", "speed"), [("slower, x0.8", 0.8), ("faster, x1.2", 1.2)])
def test_another_tempo_keeps_the_pitch(name, speed):
    audio = tone(440)
    changed = degrade.DEGRADATIONS[name](audio)
    assert len(audio) / len(changed) == pytest.approx(speed, rel=0.02)
    assert pitch(changed[1600:-1600]) == pytest.approx(440, abs=2)


def test_a_telephone_passes_speech_and_nothing_beside_it():
    kept = [degrade.telephone(tone(hertz)) for hertz in (100, 250, 400, 1000, 3300, 3600, 7000)]
    levels = [power(audio) / power(tone(1000)) for audio in kept]
    np.testing.assert_allclose(levels, [0, 0, 1, 1, 1, 0, 0], atol=0.01)


def test_opus_comes_back_in_time_at_its_rate():
    rng = np.random.default_rng(0)
    time = np.arange(3 * RATE) / RATE
    pulses = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    audio = (0.1 * pulses * (1 + np.sin(2 * np.pi * 3 * time)) / 2).astype(np.float32)
    audio += rng.normal(0, 1e-3, len(audio)).astype(np.float32)
    decoded, bits = degrade.opus(audio)
    assert len(decoded) == len(audio)
    assert bits / 3 == pytest.approx(6000, rel=0.03)
    lags = range(-400, 401)
    middle = slice(1000, len(audio) - 1000)
    found = [np.dot(np.roll(decoded, -lag)[middle], audio[middle]) for lag in lags]
    assert abs(lags[int(np.argmax(found))]) <= 16  # a millisecond
    assert np.corrcoef(decoded[middle], audio[middle])[0, 1] > 0.6


def test_every_damage_takes_a_short_clip():
    for damage in degrade.DEGRADATIONS.values():
        assert np.isfinite(damage(tone(300, 0.3))).all()
    assert len(degrade.opus(tone(300, 0.3))[0]) == 4800
