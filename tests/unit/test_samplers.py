import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.decoding import samplers
from slm_jax.decoding.samplers import Sampling

LOGITS = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.2, 0.5]]))


def draws(sampling, count=2000, **kwargs):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: samplers.sample(key, LOGITS, sampling, **kwargs))(keys))


def test_greedy_takes_the_largest_and_no_key_matters():
    for seed in range(3):
        ids = samplers.sample(jax.random.key(seed), LOGITS, Sampling())
        assert ids.tolist() == [0, 4]


def test_temperature_one_follows_the_distribution():
    ids = draws(Sampling(temperature=1.0))
    frequencies = np.bincount(ids[:, 0], minlength=5) / len(ids)
    np.testing.assert_allclose(frequencies, np.exp(LOGITS[0]), atol=0.04)


def test_low_temperature_sharpens():
    ids = draws(Sampling(temperature=0.5))
    square = np.exp(LOGITS[0]) ** 2
    frequencies = np.bincount(ids[:, 0], minlength=5) / len(ids)
    np.testing.assert_allclose(frequencies, square / square.sum(), atol=0.04)


@pytest.mark.parametrize(("k", "kept"), [(1, 1), (2, 2), (4, 4), (50, 5)])
def test_top_k_keeps_k(k, kept):
    assert int(jnp.isfinite(samplers.keep_top_k(LOGITS, k)).sum()) == 2 * kept
    assert set(draws(Sampling(temperature=1.0, top_k=k), 300)[:, 0]) <= set(range(kept))


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, 1), (0.49, 1), (0.6, 2), (0.72, 3), (0.9, 4), (0.999, 5)]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    finite = np.isfinite(samplers.keep_top_p(LOGITS, p))
    assert finite[0].tolist() == [True] * kept + [False] * (5 - kept)
    assert finite[1].tolist() == finite[0].tolist()[::-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.999), st.floats(0.1, 30))
def test_top_p_equals_sorting_the_ids(seed, p, spread):
    logits = spread * np.random.default_rng(seed).normal(size=(2, 64)).astype(np.float32)
    kept = np.isfinite(samplers.keep_top_p(jnp.asarray(logits), p))
    for row, shares in enumerate(np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)):
        order = np.argsort(-shares)
        before = np.cumsum(shares[order]) - shares[order]
        doubtful = np.abs(before - p) < 1e-5  # rounding decides
        np.testing.assert_array_equal(kept[row][order][~doubtful], (before < p)[~doubtful])


def test_penalty_pushes_seen_ids_down_whatever_their_sign():
    logits = jnp.array([[2.0, 1.9, -1.0, -1.05]])
    seen = jnp.array([[True, False, True, False]])
    out = samplers.penalize(logits, seen, 1.1)
    np.testing.assert_allclose(out, [[2 / 1.1, 1.9, -1.1, -1.05]], rtol=1e-6)
    ids = samplers.sample(jax.random.key(0), logits, Sampling(repetition_penalty=1.1), seen)
    assert ids.tolist() == [1]


def test_banned_ids_are_never_drawn():
    banned = LOGITS.at[:, 0].set(-jnp.inf)
    keys = jax.random.split(jax.random.key(1), 300)
    sampling = Sampling(temperature=2.0, top_p=0.95, repetition_penalty=1.3)
    seen = jnp.ones_like(LOGITS, bool)
    ids = jax.vmap(lambda key: samplers.sample(key, banned, sampling, seen))(keys)
    assert 0 not in np.asarray(ids)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
    ],
)
def test_out_of_range_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        Sampling(**setting)
