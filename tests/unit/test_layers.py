"""Building blocks against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from slm_jax.nn.layers import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.02)])
def test_gelu_is_the_exact_one(dtype, tolerance):
    x = jnp.linspace(-8, 8, 1001).astype(dtype)
    exact = np.asarray(x, np.float64) * ndtr(np.asarray(x, np.float64))
    got = gelu(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=tolerance)
