import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.models.cross_decoder import CrossDecoder, CrossDecoderConfig
from slm_jax.nn import tree

CONFIG = CrossDecoderConfig(width=12, layers=2, heads=3, mlp_width=20, memory_width=10)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 9, 12)).astype(np.float32)
MEMORY = RNG.normal(size=(2, 6, 10)).astype(np.float32)
POSITIONS = np.broadcast_to(np.arange(9), (2, 9))


@jax.jit
def run(model, x, positions, segment_ids=None, cache=None, memory=None, memory_segment_ids=None):
    return model.run(x, positions, segment_ids, cache, memory, memory_segment_ids)


@jax.jit
def start(model, memory, memory_segment_ids=None):
    return model.init_cache(2, 10, memory, memory_segment_ids)


def build(config, seed=0):
    """A module with random weights; drawn by numpy, for XLA takes seconds to compile its own."""
    graphdef, params = tree.pure_params(nnx.eval_shape(lambda: CrossDecoder(config, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), params)
    return graphdef, params


@pytest.fixture(scope="module")
def model():
    return tree.merge(*build(CONFIG))


def full(model, memory=MEMORY, memory_segment_ids=None):
    return run(model, X, POSITIONS, memory=memory, memory_segment_ids=memory_segment_ids)[0]


@pytest.mark.parametrize("ids", [None, np.array([[1] * 4 + [0] * 2, [0] * 6])])
def test_cached_decode_equals_the_full_forward(model, ids):
    want = full(model, memory_segment_ids=ids)
    got, cache = run(model, X[:, :4], POSITIONS[:, :4], cache=start(model, MEMORY, ids))
    steps = [got]
    for s in range(4, 9):
        got, cache = run(model, X[:, s : s + 1], POSITIONS[:, s : s + 1], cache=cache)
        steps.append(got)
    np.testing.assert_allclose(np.concatenate(steps, 1), want, atol=1e-5)


def test_columns_beyond_the_cache_are_not_written(model):
    cache = start(model, MEMORY)
    _, after = run(model, X[:, :1], np.full((2, 1), 10), cache=cache)
    np.testing.assert_array_equal(after.own.k, cache.own.k)


def test_one_memory_serves_all_rows(model):
    got = start(model, MEMORY[:1]), start(model, MEMORY[:1], np.array([[1, 1, 1, 0, 1, 1]]))
    same = np.repeat(MEMORY[:1], 2, axis=0)
    want = start(model, same), start(model, same, np.tile([1, 1, 1, 0, 1, 1], (2, 1)))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_packed_equals_unpacked(model):
    segments = np.array([[1] * 4 + [2] * 3 + [0] * 2, [1] * 2 + [2] * 7])
    memory_segments = np.array([[1] * 2 + [2] * 3 + [0], [2] * 4 + [1] * 2])
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, *range(7)]])
    got, _ = run(model, X, positions, segments, None, MEMORY, memory_segments)
    for segment, packed in ((1, [(0, 0, 4), (1, 0, 2)]), (2, [(0, 4, 7), (1, 2, 9)])):
        alone = np.zeros_like(X)
        for row, begin, end in packed:
            alone[row, : end - begin] = X[row, begin:end]
        mine = memory_segments == segment
        want, _ = run(model, alone, POSITIONS, None, None, MEMORY, mine.astype(int))
        for row, begin, end in packed:
            np.testing.assert_allclose(got[row, begin:end], want[row, : end - begin], atol=1e-5)


def test_padding_of_the_memory_is_not_seen(model):
    ids = np.array([[1] * 4 + [0] * 2, [1] * 6])
    want = full(model, memory_segment_ids=ids)
    spoiled = np.where(ids[..., None], MEMORY, 1e3)
    np.testing.assert_array_equal(full(model, spoiled, ids), want)
    np.testing.assert_allclose(full(model, MEMORY[:, :4])[0], want[0], atol=1e-5)
    assert np.abs(full(model)[0] - want[0]).max() > 0.1


def test_a_segment_without_memory_gets_zeros_from_it(model):
    params = tree.pure_params(model)[1]
    params["layers"]["memory_attention"]["o"]["kernel"] *= 0
    deaf = tree.merge(tree.pure_params(model)[0], params)
    want = full(deaf)
    assert np.abs(full(model) - want).max() > 0.1
    np.testing.assert_allclose(full(model, memory_segment_ids=np.zeros((2, 6), int)), want, atol=0)
    segments = np.array([[1] * 9, [0] * 9])  # the memory is of another segment, and padding
    got, _ = run(model, X, POSITIONS, segments, None, MEMORY, np.array([[2] * 6, [0] * 6]))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_remat_changes_no_gradient_and_gradients_reach_every_weight_and_the_memory():
    ids = np.array([[1] * 4 + [0] * 2, [0] * 6])

    @functools.partial(jax.jit, static_argnums=1)
    def loss(params, graphdef):
        def f(params, memory):
            hidden = full(tree.merge(graphdef, params), memory, ids)
            return jnp.sum(jnp.sin(hidden))

        return jax.grad(f, argnums=(0, 1))(params, jnp.asarray(MEMORY))

    graphdef, params = build(CONFIG)
    weights, memory = loss(params, graphdef)
    for name, grad in tree.flatten(weights).items():
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, name
    assert (np.abs(memory).max(-1) > 0).tolist() == (ids > 0).tolist()
    other, _ = build(dataclasses.replace(CONFIG, remat="full"))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4),
        loss(params, other),
        (weights, memory),
    )


def test_bfloat16_stays_near_f32(model):
    low, _ = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    got = full(tree.merge(low, tree.pure_params(model)[1]))
    want = full(model)
    assert got.dtype == jnp.bfloat16
    assert np.abs(got.astype(jnp.float32) - want).max() / np.std(want) < 0.15


def test_logical_axes_name_every_weight():
    axes = tree.flatten(
        tree.logical_axes(nnx.eval_shape(lambda: CrossDecoder(CONFIG, nnx.Rngs(0))))
    )
    assert axes["layers/memory_attention/k/kernel"] == ("layers", "embed", "heads")
    assert axes["layers/memory_attention/o/kernel"] == ("layers", "heads", "embed")
    assert axes["norm/bias"] == ("embed",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width=12 is not a multiple of heads=5"),
        ({"width": 9}, "width=9 must be even"),
        ({"memory_width": 0}, "memory_width=0 must be positive"),
    ],
)
def test_refuses_sizes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_refuses_inputs_that_contradict_each_other(model):
    ones = np.ones((2, 9), int)
    with pytest.raises(ValueError, match="needs a memory"):
        run(model, X, POSITIONS)
    with pytest.raises(ValueError, match="need memory_segment_ids"):
        run(model, X, POSITIONS, ones, memory=MEMORY)
    cache = start(model, MEMORY)
    for given in ({"segment_ids": ones}, {"memory": MEMORY}):
        with pytest.raises(ValueError, match="a cache holds one segment a row and its memory"):
            run(model, X, POSITIONS, cache=cache, **given)
