import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.nn.quantizers import (
    FsqConfig,
    RvqConfig,
    fsq,
    fsq_codebooks,
    fsq_decode,
    rvq,
    rvq_decode,
    rvq_ema,
    rvq_encode,
    rvq_init,
    rvq_kmeans,
)


def data(n=400, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_each_level_halves_what_is_left():
    config = RvqConfig(levels=4, codes=32, width=6)
    x = data()
    books = rvq_kmeans(config, x, seed=0)["codebooks"]
    codes = rvq_encode(books, x)
    errors = [float(jnp.mean((x - rvq_decode(books, codes[:, :k])) ** 2)) for k in range(1, 5)]
    assert all(b < 0.8 * a for a, b in itertools.pairwise(errors))


def test_encode_picks_the_nearest_code_of_the_residual():
    config = RvqConfig(levels=2, codes=8, width=3)
    x = data(50, 3)
    books = np.asarray(rvq_kmeans(config, x, seed=1)["codebooks"])
    codes = np.asarray(rvq_encode(jnp.asarray(books), x))
    first = np.argmin(((x[:, None] - books[0]) ** 2).sum(-1), axis=1)
    rest = x - books[0][first]
    second = np.argmin(((rest[:, None] - books[1]) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(codes, np.stack([first, second], axis=1))


def test_gradient_passes_straight_through_and_masked_rows_cost_nothing():
    config = RvqConfig(levels=2, codes=8, width=3)
    books = rvq_kmeans(config, data(64, 3), seed=0)["codebooks"]
    x = jnp.asarray(data(8, 3, seed=2)).reshape(2, 4, 3)
    mask = jnp.ones((2, 4)).at[1, 2:].set(0)
    grads = jax.grad(lambda x: rvq(books, x, mask, 2).latents.sum())(x)
    np.testing.assert_allclose(grads, 1.0)
    commitment = jax.grad(lambda x: rvq(books, x, mask, 2).commitment)(x)
    assert np.all(np.asarray(commitment[1, 2:]) == 0)
    assert np.any(np.asarray(commitment[0]) != 0)


def test_fewer_used_levels_are_the_coarse_ones():
    config = RvqConfig(levels=3, codes=8, width=3)
    books = rvq_kmeans(config, data(64, 3), seed=0)["codebooks"]
    x = jnp.asarray(data(6, 3)).reshape(1, 6, 3)
    out = rvq(books, x, jnp.ones((1, 6)), 2)
    np.testing.assert_allclose(out.latents, rvq_decode(books, out.codes[..., :2]), atol=1e-6)


def test_ema_moves_codes_to_their_members_and_revives_dead_ones():
    config = RvqConfig(levels=1, codes=4, width=2, decay=0.5, revive_below=0.05)
    state = rvq_init(config)
    far = jnp.array([[[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [-60.0, 60.0]]])
    state |= {"codebooks": far, "sums": far}
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [4.0, 4.0]])
    update = jax.jit(rvq_ema, static_argnums=1)
    for step in range(60):
        x = centres[rng.integers(0, 2, 64)] + rng.normal(0, 0.1, (64, 2))
        x = jnp.asarray(x[None], jnp.float32)
        state = update(state, config, x, jnp.ones((1, 64)), jax.random.key(step))
    books = np.asarray(state["codebooks"][0])
    nearest = np.min(((centres[:, None] - books) ** 2).sum(-1), axis=1)
    assert np.all(nearest < 0.1)
    assert np.abs(books).max() < 10  # none is left where no data is


def test_kmeans_needs_as_many_vectors_as_codes():
    with pytest.raises(ValueError, match="at least 16"):
        rvq_kmeans(RvqConfig(levels=1, codes=16, width=3), data(8, 3), seed=0)


@pytest.mark.parametrize("grid", [[2], [3], [8, 8], [4, 5, 2]])
@pytest.mark.parametrize("levels", [1, 3])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_fsq_codes_and_latents_are_one_to_one(grid, levels, seed):
    config = FsqConfig(levels=levels, grid=tuple(grid))
    x = np.random.default_rng(seed).normal(0, 2, (5, config.width)).astype(np.float32)
    out = fsq(config, jnp.asarray(x))
    codes = np.asarray(out.codes)
    assert codes.min() >= 0 and np.all(codes.max(0) < config.vocab)
    np.testing.assert_allclose(out.latents, fsq_decode(config, out.codes), atol=1e-6)
    summed = sum(fsq_codebooks(config)[k][codes[:, k]] for k in range(levels))
    np.testing.assert_allclose(out.latents, summed, atol=1e-6)


def test_fsq_reaches_every_code():
    config = FsqConfig(levels=1, grid=(4, 5))
    x = np.random.default_rng(0).normal(0, 3, (4000, 2)).astype(np.float32)
    assert len(np.unique(fsq(config, jnp.asarray(x)).codes)) == 20
