import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.models.backbone import Backbone, BackboneConfig, init_cache
from slm_jax.nn import tree

CONFIG = BackboneConfig(
    vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
IDS = np.random.default_rng(0).integers(0, 31, (2, 9))
POSITIONS = np.broadcast_to(np.arange(9), (2, 9))


@jax.jit
def run(model, ids, positions, segment_ids=None, cache=None):
    hidden, cache = model(model.embed(ids), positions, segment_ids, cache)
    return model.logits(hidden), cache


def build(config, seed=0):
    """A module with random weights; drawn by numpy, for XLA takes seconds to compile its own."""
    graphdef, params = tree.pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), params)
    return graphdef, params


@pytest.fixture(scope="module", params=[None, 3], ids=["full", "window"])
def model(request):
    return tree.merge(*build(dataclasses.replace(CONFIG, window=request.param)))


def test_cached_decode_equals_the_full_forward(model):
    want, _ = run(model, IDS, POSITIONS)
    cache = init_cache(model.config, 2, 12)
    got, cache = run(model, IDS[:, :4], POSITIONS[:, :4], cache=cache)
    steps = [got]
    for s in range(4, 9):
        got, cache = run(model, IDS[:, s : s + 1], POSITIONS[:, s : s + 1], cache=cache)
        steps.append(got)
    np.testing.assert_allclose(np.concatenate(steps, 1), want, atol=1e-5)


def test_rows_of_unequal_length_prefill_in_one_call_and_go_on_from_their_own_ends(model):
    want, _ = run(model, IDS, POSITIONS)
    lengths = np.array([3, 5])
    prompt = np.where(np.arange(5) < lengths[:, None], IDS[:, :5], 7)  # 7 stands for padding
    cache = init_cache(model.config, 2, 9)
    _, cache = run(model, prompt, POSITIONS[:, :5], cache=cache)
    for step in range(4):
        at = (lengths + step)[:, None]
        got, cache = run(model, np.take_along_axis(IDS, at, 1), at, cache=cache)
        np.testing.assert_allclose(got[:, 0], want[np.arange(2), at[:, 0]], atol=1e-5)


def test_columns_beyond_the_cache_are_not_written(model):
    cache = init_cache(model.config, 2, 4)
    _, after = run(model, IDS[:, :1], np.full((2, 1), 4), cache=cache)
    np.testing.assert_array_equal(after.k, cache.k)


def test_packed_equals_unpacked(model):
    segments = np.array([[1] * 4 + [2] * 3 + [0] * 2, [1] * 2 + [2] * 7])
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, *range(7)]])
    got, _ = run(model, IDS, positions, segments)
    for packed in ([(0, 0, 4), (1, 0, 2)], [(0, 4, 7), (1, 2, 9)]):
        alone = np.zeros((2, 9), int)
        for row, start, stop in packed:
            alone[row, : stop - start] = IDS[row, start:stop]
        want, _ = run(model, alone, POSITIONS)
        for row, start, stop in packed:
            np.testing.assert_allclose(got[row, start:stop], want[row, : stop - start], atol=1e-5)


def test_remat_and_lora_change_no_output_and_gradients_reach_every_weight():
    @functools.partial(jax.jit, static_argnums=1)
    def loss(params, graphdef):
        def f(params):
            model = tree.merge(graphdef, params)
            return jnp.sum(jax.nn.log_softmax(run(model, IDS, POSITIONS)[0])[..., 0])

        return jax.value_and_grad(f)(params)

    graphdef, params = build(CONFIG)
    value, grads = loss(params, graphdef)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    for changes in ({"remat": "full", "lora_rank": 2}, {"remat": "dots"}):
        other, other_params = build(dataclasses.replace(CONFIG, **changes), seed=1)
        flat = tree.flatten(params)
        flat |= {n: 0 * p for n, p in tree.flatten(other_params).items() if n.endswith("lora_b")}
        got, got_grads = loss(tree.load_flat(other_params, flat, strict=False), other)
        np.testing.assert_allclose(got, value, rtol=1e-5)
        got_grads = tree.flatten(got_grads)
        for name, grad in tree.flatten(grads).items():
            np.testing.assert_allclose(got_grads[name], grad, atol=1e-3)
        for name in got_grads.keys() - tree.flatten(grads).keys():
            assert (np.abs(got_grads[name]).max() > 0) == name.endswith("lora_b"), name


def test_bfloat16_stays_near_f32():
    graphdef, params = build(CONFIG)
    low_graphdef, _ = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    got, _ = run(tree.merge(low_graphdef, params), IDS, POSITIONS)
    assert got.dtype == jnp.bfloat16
    want, _ = run(tree.merge(graphdef, params), IDS, POSITIONS)
    difference = np.abs(got.astype(jnp.float32) - want).max() / np.std(want)
    assert difference < 0.1


def test_refuses_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="heads=4 is not a multiple of kv_heads=3"):
        dataclasses.replace(CONFIG, kv_heads=3)
    with pytest.raises(ValueError, match="head_dim=7"):
        dataclasses.replace(CONFIG, head_dim=7)
