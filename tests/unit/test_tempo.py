import numpy as np
import pytest

from slm_jax.audio.tempo import shift_pitch, tempo

RATE = 16_000


def tone(hertz, seconds=1.5):
    t = np.arange(int(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * k * hertz * t) / k for k in (1, 2, 3)).astype(np.float32) * 0.2


def fundamental(audio):
    """The strongest partial of the middle second, by a parabola through the spectrum's peak."""
    middle = audio[len(audio) // 2 - 4096 : len(audio) // 2 + 4096]
    spectrum = np.log(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) + 1e-9)
    k = int(np.argmax(spectrum))
    a, b, c = spectrum[k - 1 : k + 2]
    return (k + (a - c) / (2 * (a - 2 * b + c))) * RATE / len(middle)


@pytest.mark.parametrize("factor", [0.6, 0.75, 1.35, 1.8])
@pytest.mark.parametrize("hertz", [90.0, 210.0, 387.0])
def test_tempo_changes_the_duration_and_keeps_the_pitch(factor, hertz):
    audio = tone(hertz)
    out = tempo(audio, factor)
    assert out.dtype == np.float32 and len(out) == round(len(audio) / factor)
    assert fundamental(out) == pytest.approx(hertz, rel=0.01)
    middle = slice(len(out) // 4, 3 * len(out) // 4)
    assert np.std(out[middle]) == pytest.approx(np.std(audio), rel=0.05)


@pytest.mark.parametrize("semitones", [-4, -1, 3, 5])
def test_pitch_moves_and_the_duration_stays(semitones):
    audio = tone(200.0)
    out = shift_pitch(audio, semitones)
    assert len(out) == len(audio)
    assert fundamental(out) == pytest.approx(200 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.parametrize("factor", [0.75, 1.35])
def test_what_happens_keeps_its_place_in_time(factor):
    """A burst at a third of the input is at a third of the output, in its own new length."""
    noise = np.random.default_rng(0).normal(size=RATE // 2).astype(np.float32)
    audio = np.concatenate([np.zeros(RATE, np.float32), noise, np.zeros(3 * RATE // 2, np.float32)])
    loud = np.flatnonzero(np.abs(tempo(audio, factor)) > 0.2)
    assert loud[0] == pytest.approx(RATE / factor, abs=500)
    assert loud[-1] == pytest.approx(1.5 * RATE / factor, abs=500)


def test_nothing_to_do_and_nothing_there():
    audio = tone(100.0, 0.2)
    assert tempo(audio, 1) is audio
    np.testing.assert_allclose(shift_pitch(audio, 0), audio, atol=1e-6)
    assert tempo(np.zeros(3, np.float32), 0.5).shape == (6,)
    for factor in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive"):
            tempo(audio, factor)
