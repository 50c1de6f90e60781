import numpy as np
import pytest

from slm_jax.evaluation.tokenizers import ladder

RATE = 16_000


def tone(hertz, seconds=1.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(
        np.float32
    )


def test_the_low_pass_takes_what_is_above_and_nothing_else():
    low, high = tone(1000), tone(6000)
    np.testing.assert_allclose(ladder.low_pass(low + high), low, atol=1e-5)


@pytest.mark.parametrize(("mode", "rate"), [(3200, 3200), (1200, 1200)])
def test_codec2_keeps_the_length_and_costs_its_rate(mode, rate):
    pytest.importorskip("pycodec2")
    rng = np.random.default_rng(0)
    pulses = np.zeros(2 * RATE, np.float32)
    pulses[:: RATE // 120] = 0.5
    audio = np.convolve(pulses, np.exp(-np.arange(200) / 30) * np.cos(np.arange(200) / 4), "same")
    audio = (audio + 0.001 * rng.normal(size=len(audio))).astype(np.float32)
    decoded, bits = ladder.codec2(audio, mode)
    assert decoded.shape == audio.shape and decoded.dtype == np.float32
    assert bits == pytest.approx(2 * rate, rel=0.05)
    spectrum = np.abs(np.fft.rfft(decoded))
    assert spectrum[2 * 4100 :].sum() < 0.05 * spectrum.sum()
    assert 0.1 < decoded.std() / audio.std() < 10


@pytest.mark.parametrize("name", ladder.LADDER)
def test_every_rung_takes_any_length(name):
    if name.startswith("Codec2"):
        pytest.importorskip("pycodec2")
    for count in (1, 159, 16_001):
        decoded, bits = ladder.LADDER[name](tone(200)[:1].repeat(count))
        assert decoded.shape == (count,) and np.isfinite(decoded).all()
        assert bits is None or bits > 0
