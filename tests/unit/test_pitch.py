import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.audio.pitch import PitchConfig, pitch

RATE = 16_000


def tone(hertz, seconds=0.6):
    time = np.arange(int(seconds * RATE)) / RATE
    return sum(np.cos(2 * np.pi * hertz * k * time) / k for k in range(1, 8)).astype(np.float32)


@pytest.mark.parametrize("hertz", [70.0, 100.0, 150.3, 220.0, 333.0, 440.0])
def test_the_pitch_of_a_tone_is_found_within_three_cents(hertz):
    found, voiced = pitch(tone(hertz)[None] * 0.1)
    assert voiced.shape == (1, 1 + int(0.6 * RATE) // 256) and bool(voiced.all())
    cents = 1200 * np.log2(np.asarray(found)[0, 4:-4] / hertz)
    assert np.abs(cents).max() < 3


def test_noise_and_silence_are_unvoiced_and_rows_do_not_mix():
    noise = np.random.default_rng(0).normal(0, 0.1, 9600).astype(np.float32)
    found, voiced = pitch(np.stack([noise, tone(200.0), np.zeros_like(noise)]))
    assert np.asarray(voiced).mean(axis=1).tolist() == [0.0, 1.0, 0.0]
    assert np.isfinite(np.asarray(found)).all()


def test_a_glide_is_followed_without_octave_jumps():
    hertz = 120 * 2 ** (np.arange(RATE) / RATE)
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    audio = sum(np.cos(k * phase) / k for k in range(1, 6)).astype(np.float32)
    found = np.asarray(pitch(audio[None])[0])[0]
    centre = np.minimum(np.arange(len(found)) * 256, RATE - 1)
    assert np.abs(1200 * np.log2(found[4:-4] / hertz[centre][4:-4])).max() < 20


def test_voice_between_silences_is_marked_where_it_is():
    quiet = np.zeros(RATE // 4, np.float32)
    audio = np.concatenate([quiet, tone(150.0, 0.5), quiet])
    voiced = np.asarray(pitch(audio[None])[1])[0]
    times = np.flatnonzero(voiced) * 256 / RATE
    assert abs(times[0] - 0.25) < 0.05 and abs(times[-1] - 0.75) < 0.05


def test_one_frame_is_enough():
    found, voiced = pitch(jnp.zeros((1, 100)))
    assert found.shape == voiced.shape == (1, 1)


def test_a_ceiling_beyond_reach_is_refused():
    with pytest.raises(ValueError, match="ceiling"):
        PitchConfig(ceiling=5000.0)


def test_real_speech_agrees_with_another_method():
    """librosa's pYIN (Mauch & Dixon 2014) on synthetic vowels whose pitch wanders."""
    librosa = pytest.importorskip("librosa")
    rng = np.random.default_rng(1)
    wander = np.cumsum(rng.normal(0, 1, 2 * RATE)) / 40
    hertz = 160 * 2 ** (wander / 24)
    source = sum(np.cos(k * 2 * np.pi * np.cumsum(hertz) / RATE) for k in range(1, 30))
    audio = (source + rng.normal(0, 0.5, len(source))).astype(np.float32) * 0.02
    ours, voiced = (np.asarray(x)[0] for x in pitch(audio[None]))
    theirs, _, _ = librosa.pyin(
        audio, fmin=65, fmax=500, sr=RATE, frame_length=1024, hop_length=256
    )
    both = voiced & np.isfinite(theirs)
    assert both.mean() > 0.9
    assert np.median(np.abs(1200 * np.log2(ours[both] / theirs[both]))) < 15
