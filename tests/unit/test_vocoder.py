import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.audio.features import MelConfig, log_envelope
from slm_jax.audio.pitch import pitch
from slm_jax.tokenizers.vocoder import (
    Vocoder,
    VocoderConfig,
    denormalise_pitch,
    excitation,
    fill_pitch,
    normalise_pitch,
    spectral_losses,
)
from slm_jax.training.discriminators import Discriminators, discriminator_loss, generator_losses

RATE, HOP = 16_000, 256
TINY = VocoderConfig(width=8, mlp=8, layers=1)


def test_pulses_have_the_pitch_they_are_given_and_unit_power():
    hertz = jnp.linspace(110.0, 180.0, 60)[None]
    pulses, noise = excitation(hertz, jnp.ones((1, 60)), RATE, HOP)
    assert pulses.shape == noise.shape == (1, 59 * HOP)
    voice = np.convolve(np.asarray(pulses)[0], np.hanning(33), "same").astype(np.float32)
    found, voiced = pitch(voice[None])  # as soft as speech: a flat spectrum is no voice
    assert bool(voiced[0, 2:-2].all())
    cents = 1200 * np.log2(np.asarray(found)[0, 4:-4] / np.asarray(hertz)[0, 4:-4])
    assert np.abs(cents).max() < 25
    assert abs(float(jnp.mean(pulses**2)) - 1) < 0.05 and abs(float(jnp.mean(noise**2)) - 1) < 0.05


def test_the_pulse_train_is_the_sum_of_its_harmonics():
    hertz = 200.0
    pulses = np.asarray(excitation(jnp.full((1, 5), hertz), jnp.ones((1, 5)), RATE, HOP)[0])[0]
    phase = 2 * np.pi * hertz / RATE * np.arange(1, 4 * HOP + 1)
    expected = sum(np.cos(k * phase) for k in range(1, 41)) / np.sqrt(20)
    np.testing.assert_allclose(pulses, expected, atol=2e-2)


def test_phase_stays_exact_for_half_a_minute():
    hertz = jnp.full((1, 1876), 100.0)
    pulses = np.asarray(excitation(hertz, jnp.ones_like(hertz), RATE, HOP)[0])[0]
    peaks = np.flatnonzero(pulses > 0.9 * pulses.max())
    np.testing.assert_allclose(peaks % 160, peaks[0] % 160, atol=1)


def test_unvoiced_frames_have_no_pulses_and_take_the_pitch_before_them():
    voiced = jnp.array([[0.0, 0, 1, 1, 0, 0, 0]])
    hertz = jnp.array([[7.0, 7, 120, 130, 9, 9, 9]])
    filled = np.asarray(fill_pitch(hertz, voiced))
    np.testing.assert_array_equal(filled, [[120, 120, 120, 130, 130, 130, 130]])
    np.testing.assert_array_equal(fill_pitch(hertz, 0 * voiced), np.full((1, 7), 100))
    pulses = np.asarray(excitation(hertz, voiced, RATE, HOP)[0])[0]
    assert np.all(pulses[:HOP] == 0) and np.all(pulses[4 * HOP :] == 0)
    assert np.abs(pulses[2 * HOP : 3 * HOP]).max() > 1


def test_pitch_normalisation_inverts():
    hertz = jnp.array([70.0, 148.0, 400.0])
    np.testing.assert_allclose(denormalise_pitch(normalise_pitch(hertz)), hertz, rtol=1e-5)


def test_the_vocoder_learns_to_say_a_vowel_and_its_gradients_are_finite():
    """Pulses and noise go in, a vowel's spectrum comes out: a few steps bring the losses down."""
    time = np.arange(10 * HOP) / RATE
    audio = sum(np.cos(2 * np.pi * 150 * k * time) / k**2 for k in range(1, 20))
    audio = jnp.asarray(audio, jnp.float32)[None] * 0.2
    hertz, voiced = pitch(audio)
    graphdef, params = nnx.split(Vocoder(TINY, rngs=nnx.Rngs(0)))
    mel = log_envelope(audio, hertz, TINY.mel)

    @jax.jit
    def step(params):
        def loss(params):
            said = nnx.merge(graphdef, params)(mel, hertz, voiced.astype(jnp.float32))
            return sum(spectral_losses(said, audio, RATE).values())

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * jnp.sign(g), params, grads), value, grads

    first = None
    for _ in range(12):
        params, value, grads = step(params)
        assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
        first = value if first is None else first
    assert float(value) < 0.7 * float(first)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hop"):
        VocoderConfig(mel=MelConfig(hop=200), hop=128)
    with pytest.raises(ValueError, match="positive"):
        VocoderConfig(layers=0)


def test_discriminators_learn_to_tell_noise_from_tones():
    rng = np.random.default_rng(0)
    time = np.arange(1024) / RATE
    real = np.stack([np.sin(2 * np.pi * f * time) for f in (200, 300)]).astype(np.float32)
    fake = rng.normal(0, 0.5, real.shape).astype(np.float32)
    graphdef, params = nnx.split(Discriminators(8, 1, rngs=nnx.Rngs(0)))

    @jax.jit
    def step(params):
        def loss(params):
            return discriminator_loss(nnx.merge(graphdef, params), real, fake)

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.02 * jnp.sign(g), params, grads), value

    values = []
    for _ in range(8):
        params, value = step(params)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]
    named = generator_losses(nnx.merge(graphdef, params), real, fake)
    same = generator_losses(nnx.merge(graphdef, params), real, real)
    assert float(named["features"]) > 0.1 and float(same["features"]) == 0.0
    assert float(named["adversarial"]) > float(same["adversarial"])
