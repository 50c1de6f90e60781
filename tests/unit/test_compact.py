"""Weights in a byte each: the error is bounded, and nothing else changes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.nn.compact import pack, unpack


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.sampled_from([(7, 5), (3, 7, 5)]))
def test_kernels_come_back_within_half_a_step(seed, power, shape):
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 10**power
    flat = {"a/kernel": kernel, "a/bias": np.float32([0.5, -2, 0]), "books": np.ones((4, 2))}
    packed = pack(flat)
    assert packed["a/kernel"].dtype == np.int8 and packed["books"].dtype == np.float16
    back = unpack(packed)
    assert back.keys() == flat.keys()
    step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
    assert (np.abs(back["a/kernel"] - kernel) <= 0.56 * step + 1e-4).all()
    np.testing.assert_array_equal(back["a/bias"], flat["a/bias"])


def test_an_output_without_weights_stays_so():
    back = unpack(pack({"kernel": np.zeros((4, 3), np.float32)}))
    np.testing.assert_array_equal(back["kernel"], 0)
