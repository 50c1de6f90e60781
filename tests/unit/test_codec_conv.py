"""Snake's sine against numpy's in float64."""

import jax
import numpy as np
import pytest

from slm_jax.nn.codec_conv import sin_squared


@pytest.mark.parametrize("largest", [1e-3, 1.6, 10.0, 1e3])
def test_sine_is_exact_over_many_turns(largest):
    x = np.random.default_rng(0).uniform(-largest, largest, 20_000).astype(np.float32)
    wanted = np.sin(x.astype(np.float64)) ** 2
    np.testing.assert_allclose(jax.jit(sin_squared)(x), wanted, atol=6e-7)


def test_sine_stays_between_zero_and_one():
    x = np.array([0.0, np.pi, -np.pi / 2, 1e9, -3e20, 3e38], np.float32)
    found = np.asarray(jax.jit(sin_squared)(x))
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()
    np.testing.assert_allclose(found[:3], [0, 0, 1], atol=1e-6)
