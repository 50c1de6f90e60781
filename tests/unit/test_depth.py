import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.models.depth import DepthConfig, DepthTransformer
from slm_jax.nn import tree
from slm_jax.nn.rope import RopeScaling

CONFIG = DepthConfig(width=8, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=12)
D, N, K = 12, 5, 3
PREVIOUS, CLASSES = (11, 7, 9), (6, 8, 5)
CONDITIONS = ("previous", "prefix", "cumsum", "slice")
ROPE = {"rope_theta": 50.0, "rope_scaling": RopeScaling("linear", 2.0)}


def config_of(condition, per_step=0, rope=0, shared=0):
    return dataclasses.replace(
        CONFIG,
        condition=condition,
        per_step=bool(per_step),
        shared_tables=bool(shared),
        final_norm=not per_step,
        **(ROPE if rope else {}),
    )


# Every trait, with a row before the first predicted one (text, in Moshi) or without (Voila).
VARIANTS = [
    *((config_of(*traits), 11) for traits in itertools.product(CONDITIONS, (0, 1), (0, 1))),
    *((config_of(condition), 0) for condition in CONDITIONS),
    *((config_of(condition, shared=True), 11) for condition in CONDITIONS[:3]),
]
IDS = [
    f"{c.condition}{'-per_step' * c.per_step}{'-rope' * bool(c.rope_theta)}"
    f"{'-shared' * c.shared_tables}{'' if first else '-first'}"
    for c, first in VARIANTS
]
variants = pytest.mark.parametrize(("config", "first"), VARIANTS, ids=IDS)


def build(config, first=11, seed=0):
    """Structure and random weights; drawn by numpy, for XLA takes seconds to compile its own."""
    previous = (first, *PREVIOUS[1:])
    graphdef, params = tree.pure_params(
        nnx.eval_shape(lambda: DepthTransformer(config, D, previous, CLASSES, nnx.Rngs(0)))
    )
    rng = np.random.default_rng(seed)
    return graphdef, jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), params)


def columns(shared, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(N, D)).astype(np.float32)
    if shared:
        return hidden, rng.normal(size=(N, K, D)).astype(np.float32)
    return hidden, np.stack([rng.integers(0, v, N) for v in PREVIOUS], axis=1)


# Operation by operation: variants share what is compiled, and compiling each whole takes seconds.


@jax.disable_jit()
def forward(graphdef, params, hidden, previous):
    return tree.merge(graphdef, params)(hidden, previous)


@jax.disable_jit()
def decode(graphdef, params, hidden, previous, cache):
    model, logits = tree.merge(graphdef, params), []
    for k in range(K):
        row, cache = model.step(k, hidden, previous[:, k], cache)
        logits.append(row)
    return tuple(logits), cache


@variants
def test_steps_equal_the_teacher_forced_pass_in_a_cache_used_again(config, first):
    graphdef, params = build(config, first)
    cache = tree.merge(graphdef, params).init_cache(N)
    for column in range(2):  # the second begins in what the first left
        hidden, previous = columns(config.shared_tables, seed=column)
        want = forward(graphdef, params, hidden, previous)
        got, cache = decode(graphdef, params, hidden, previous, cache)
        for k in range(K):
            assert want[k].shape == (N, CLASSES[k])
            np.testing.assert_allclose(got[k], want[k], atol=1e-5)


@variants
def test_a_row_sees_all_rows_before_it_and_no_later_one(config, first):
    graphdef, params = build(config, first)
    hidden, previous = columns(config.shared_tables)
    hidden, previous = np.repeat(hidden[:1], N, 0), np.repeat(previous[:1], N, 0)
    for j in range(K):  # column j + 1 differs from column 0 before row j
        previous[j + 1, j] = (previous[0, j] + 1) % PREVIOUS[j]
    logits = forward(graphdef, params, hidden, previous)
    for j, k in itertools.product(range(K), range(K)):
        moved = np.abs(logits[k][j + 1] - logits[k][0]).max()
        sees = j <= k and (j > 0 or first > 0)  # nothing before the first row: nothing is read
        assert moved > 1e-3 if sees else moved == 0, (j, k, moved)


@variants
def test_the_state_of_the_backbone_reaches_the_rows(config, first):
    graphdef, params = build(config, first)
    hidden, previous = columns(config.shared_tables)
    hidden, previous = np.repeat(hidden[:1], N, 0), np.repeat(previous[:1], N, 0)
    hidden[1, :4] += 1  # the first slice
    hidden[2, 8:] += 1  # the last one
    logits = forward(graphdef, params, hidden, previous)
    for k in range(K):
        assert np.abs(logits[k][1] - logits[k][0]).max() > 1e-3
        moved = np.abs(logits[k][2] - logits[k][0]).max()
        assert moved == 0 if config.condition == "slice" and k < 2 else moved > 1e-3


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_empty_cell_adds_exactly_nothing(condition):
    graphdef, params = build(config_of(condition, per_step=1))
    hidden, previous = columns(shared=0)
    for j in range(K):
        empty = previous.copy()
        empty[:, j] = -1
        zero = jax.tree.map(np.copy, params)
        zero["tables"][str(j)]["embedding"][:] = 0
        got = forward(graphdef, params, hidden, empty)
        want = forward(graphdef, zero, hidden, previous)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


@functools.partial(jax.jit, static_argnums=0)
def gradient(graphdef, params, hidden, previous):
    def loss(params):
        logits = tree.merge(graphdef, params)(hidden, previous)
        return sum(-jax.nn.log_softmax(row)[:, 0].mean() for row in logits)

    return jax.grad(loss)(params)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_gradients_are_finite_reach_every_weight_and_remat_changes_none(condition):
    config = config_of(condition, per_step=1)
    graphdef, params = build(config)
    hidden, previous = columns(shared=0)
    previous[:2] = -1  # empty cells have no gradient, and must have no NaN
    grads = tree.flatten(gradient(graphdef, params, hidden, previous))
    for name, grad in grads.items():
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, name
    table = grads["tables/1/embedding"]
    assert not np.delete(table, previous[2:, 1], axis=0).any()  # not even of the id 0
    if condition == "previous":
        graphdef, _ = build(dataclasses.replace(config, remat="full"))
        again = tree.flatten(gradient(graphdef, params, hidden, previous))
        for name, grad in grads.items():
            np.testing.assert_allclose(again[name], grad, atol=1e-6)


def test_weights_per_step_are_those_of_their_steps():
    hidden, previous = columns(shared=0)
    for condition in CONDITIONS:
        graphdef, params = build(config_of(condition, per_step=1))
        want = forward(graphdef, params, hidden, previous)
        changed = jax.tree.map(np.copy, params)
        changed["layers"]["down"]["kernel"][:, -1] += 1  # the step of the last row
        got = forward(graphdef, changed, hidden, previous)
        moved = [np.abs(a - b).max() for a, b in zip(got, want, strict=True)]
        assert moved[:2] == [0, 0] and moved[2] > 1e-3


def test_dtype_is_that_of_the_hidden_state():
    config = config_of("cumsum")
    graphdef, params = build(config)
    hidden, previous = columns(shared=0)
    want = forward(graphdef, params, hidden, previous)
    low = jnp.asarray(hidden, jnp.bfloat16)
    cache = tree.merge(graphdef, params).init_cache(N, jnp.bfloat16)
    steps, cache = decode(graphdef, params, low, previous, cache)
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    for got in (forward(graphdef, params, low, previous), steps):
        for a, b in zip(got, want, strict=True):
            assert a.dtype == jnp.bfloat16
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max())


def test_every_weight_names_its_axes():
    def axes(config):
        made = nnx.eval_shape(lambda: DepthTransformer(config, D, PREVIOUS, CLASSES, nnx.Rngs(0)))
        assert tree.flatten(tree.logical_axes(made)).keys() == tree.flatten(build(config)[1]).keys()
        return tree.flatten(tree.logical_axes(made))

    shared = axes(config_of("previous"))
    assert shared["input/kernel"] == ("embed", None)
    assert shared["tables/0/embedding"] == ("codes", "embed")
    assert shared["heads/2/kernel"] == ("embed", "codes")
    assert shared["layers/q/kernel"] == ("layers", "embed", "heads")
    assert shared["norm/scale"] == ("embed",)
    own = axes(config_of("previous", per_step=1))
    assert own["input/kernel"] == ("steps", "embed", None)
    assert own["layers/k/kernel"] == ("layers", "steps", "embed", "kv_heads")
    assert own["layers/down/kernel"] == ("layers", "steps", "mlp", "embed")
    assert own["layers/mlp_norm/scale"] == ("layers", "embed")
    assert axes(config_of("prefix", per_step=1))["input/kernel"] == ("embed", None)


def test_begins_near_equal_odds_with_kernels_of_one_scale():
    config = dataclasses.replace(config_of("previous", per_step=1), width=64, mlp_width=96)
    model = DepthTransformer(config, 48, PREVIOUS, CLASSES, nnx.Rngs(0))
    params = tree.pure_params(model)[1]
    for name, inputs in (("gate", 64), ("down", 96)):
        np.testing.assert_allclose(params["layers"][name]["kernel"].std(), inputs**-0.5, rtol=0.05)
    hidden = np.random.default_rng(0).normal(size=(N, 48)).astype(np.float32)
    for logits in model(hidden, columns(shared=0)[1]):
        assert np.abs(jax.nn.log_softmax(logits) + np.log(logits.shape[1])).max() < 0.2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"layers": 0}, "layers must be positive"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": 10.0, "head_dim": 3}, "head_dim=3 must be even"),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, "needs rope_theta"),
        ({"condition": "slice", "shared_tables": True}, "slice"),
    ],
)
def test_wrong_configurations(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("condition", "width", "previous", "classes", "match"),
    [
        ("slice", 16, PREVIOUS, CLASSES, "cuts the backbone's width 16 into 3 rows"),
        ("previous", D, PREVIOUS[:2], CLASSES, r"\(6, 8, 5\) ids after rows of \(11, 7\)"),
        ("previous", D, (11, 0, 9), CLASSES, "cannot predict"),
        ("previous", D, (-1, 7, 9), CLASSES, "cannot predict"),
        ("previous", D, PREVIOUS, (6, 0, 5), "cannot predict"),
        ("previous", D, (), (), "cannot predict"),
    ],
)
def test_rows_that_do_not_fit(condition, width, previous, classes, match):
    config = config_of(condition)
    with pytest.raises(UserError, match=match):
        nnx.eval_shape(lambda: DepthTransformer(config, width, previous, classes, nnx.Rngs(0)))
