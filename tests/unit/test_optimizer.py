"""Schedules, each kind of update against its formula, groups of weights, and where moments live."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from slm_jax.config import dump, loads
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import optimizer, state
from slm_jax.training.optimizer import Optimizer

STILL = {"warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 1e9}


def weights(seed=0, width=256, inner=128):
    """Two layers of a stacked kernel, a norm, a table and a head."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    return {
        "backbone": {
            "embedding": {"embedding": normal(12, width)},
            "layers": {"up": {"kernel": normal(2, width, inner)}, "norm": {"scale": normal(2, 8)}},
        },
        "heads": {"kernel": normal(width, 16)},
    }


def first_update(config, grads, params=None):
    update = optimizer.make(config, steps=10)
    params = grads if params is None else params
    run = jax.jit(lambda grads, params: update.update(grads, update.init(params), params)[0])
    return tree.flatten(jax.device_get(run(grads, params)))


def test_schedule_rises_then_falls_on_a_cosine():
    rate = optimizer.schedule(Optimizer(learning_rate=1.0, warmup_steps=10), steps=110)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(0.55)  # half way: the mean of 1.0 and 0.1
    assert float(rate(110)) == pytest.approx(0.1)


def test_schedule_of_a_job_shorter_than_its_warmup():
    rate = optimizer.schedule(Optimizer(learning_rate=1.0, warmup_steps=10), steps=3)
    assert all(0 < float(rate(step)) <= 1 for step in range(4))


def test_wsd_rises_stays_and_falls_on_a_line():
    config = Optimizer(learning_rate=1.0, schedule="wsd", warmup_steps=10, decay_share=0.2)
    rate = optimizer.schedule(config, steps=100)
    got = [float(rate(step)) for step in (0, 5, 10, 79, 80, 90, 100)]
    np.testing.assert_allclose(got, [0.1, 0.55, 1.0, 1.0, 1.0, 0.55, 0.1], rtol=1e-5)


@pytest.mark.parametrize("share, half_way", [(0.0, 1.0), (1.0, 0.55)])
def test_wsd_without_decay_is_constant_and_with_nothing_else_a_line(share, half_way):
    config = Optimizer(learning_rate=1.0, schedule="wsd", warmup_steps=0, decay_share=share)
    rate = optimizer.schedule(config, steps=100)
    np.testing.assert_allclose([float(rate(0)), float(rate(50))], [1.0, half_way], rtol=1e-5)


def test_norms_and_biases_do_not_decay():
    params = {"layers": {"norm": {"scale": 1}, "q": {"kernel": 1, "bias": 1, "lora_a": 1}}}
    mask = optimizer.decay_mask(params)
    assert mask == {
        "layers": {"norm": {"scale": False}, "q": {"kernel": True, "bias": False, "lora_a": True}}
    }


def test_first_step_is_adamw_with_a_clipped_gradient():
    config = Optimizer(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0)
    update = optimizer.make(config, steps=10)
    params = {"a": {"kernel": jnp.array([2.0, -2.0])}, "b": {"bias": jnp.array([4.0])}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"bias": jnp.array([-4.0])}}
    updates, _ = update.update(grads, update.init(params), params)
    # Adam's first step is the gradient's sign; decay is learning_rate * weight_decay * weight.
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.1 - 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["bias"], [0.1], rtol=1e-5)


def test_new_parameters_have_a_learning_rate_of_their_own():
    config = Optimizer(learning_rate=0.1, new_scale=3.0, warmup_steps=0, weight_decay=0.0)
    update = optimizer.make(config, steps=10)
    params = {"backbone": {"kernel": jnp.ones(1)}, "heads": {"kernel": jnp.ones(1)}}
    updates, _ = update.update(params, update.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["kernel"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["heads"]["kernel"], [-0.3], rtol=1e-5)


def test_lion_moves_every_weight_by_the_rate_and_keeps_one_moment():
    grads = weights()
    for name, update in first_update(
        Optimizer(kind="lion", learning_rate=0.1, **STILL), grads
    ).items():
        np.testing.assert_allclose(update, -0.1 * np.sign(tree.flatten(grads)[name]), rtol=1e-5)
    assert slots("lion") == {"mu": sizes(grads)}


def test_adafactor_divides_by_row_and_column_and_keeps_no_more():
    """Shazeer & Stern 2018, algorithm 4, at its first step, where the decay of moments is 0."""
    grads = weights()
    config = Optimizer(kind="adafactor", learning_rate=0.1, b1=0.0, **STILL)
    got = first_update(config, grads)["backbone/layers/up/kernel"]
    square = np.asarray(grads["backbone"]["layers"]["up"]["kernel"], np.float64) ** 2
    rows, columns = square.mean(2, keepdims=True), square.mean(1, keepdims=True)
    want = np.sqrt(square * rows.mean(1, keepdims=True) / (rows * columns))
    want *= 0.1 / max(1.0, np.sqrt((want**2).mean()))
    np.testing.assert_allclose(np.abs(got), want, rtol=1e-4)
    kept = slots("adafactor", b1=0.0)
    assert kept["v_row"]["backbone/layers/up/kernel"] == 2 * 128
    assert kept["v_col"]["backbone/layers/up/kernel"] == 2 * 256
    assert kept["v"]["backbone/layers/up/kernel"] == 1
    assert kept["v"]["backbone/layers/norm/scale"] == 2 * 8
    assert "ema" not in kept and slots("adafactor", b1=0.9)["ema"] == sizes(grads)


def test_muon_makes_each_layers_matrix_nearly_orthogonal():
    grads = weights()
    config = Optimizer(kind="muon", learning_rate=0.1, **STILL)
    got = first_update(config, grads)
    stacked = got["backbone/layers/up/kernel"]
    for layer in range(2):
        singular = np.linalg.svd(-stacked[layer] / 0.1, compute_uv=False)
        # Of size 0.2 sqrt(256) each, as far as five Newton-Schulz steps bring them.
        assert (singular > 0.5 * 3.2).all() and (singular < 1.3 * 3.2).all()
        alone = {"kernel": grads["backbone"]["layers"]["up"]["kernel"][layer]}
        np.testing.assert_allclose(first_update(config, alone)["kernel"], stacked[layer], atol=1e-5)
    assert np.sqrt((stacked**2).mean()) == pytest.approx(0.02, rel=0.15)  # 0.2 of the rate


def test_muon_leaves_tables_heads_and_norms_to_adamw():
    grads = weights()
    got = first_update(Optimizer(kind="muon", learning_rate=0.1, **STILL), grads)
    want = first_update(Optimizer(learning_rate=0.1, **STILL), grads)
    for name in got.keys() - {"backbone/layers/up/kernel"}:
        np.testing.assert_array_equal(got[name], want[name])
    kept = slots("muon")
    assert kept["nu"].keys() == got.keys() - {"backbone/layers/up/kernel"}
    assert kept["mu"] == sizes(grads)


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
def test_every_kind_decays_matrices_alone_and_by_the_rate(kind):
    still = Optimizer(kind=kind, learning_rate=0.1, **STILL)
    decays = Optimizer(kind=kind, learning_rate=0.1, **STILL | {"weight_decay": 0.5})
    params, grads = weights(1), weights(2)
    without, got = first_update(still, grads, params), first_update(decays, grads, params)
    for name, weight in tree.flatten(params).items():
        decay = 0 if name.endswith("scale") else 0.05 * weight
        np.testing.assert_allclose(got[name], without[name] - decay, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["lion", "adafactor", "muon"])
def test_every_kind_goes_down(kind):
    """Towards the middle of a bowl, at a rate that falls."""
    config = Optimizer(kind=kind, learning_rate=0.1, final_fraction=0.0, **STILL)
    update, params = optimizer.make(config, 200), weights(3, width=8, inner=4)

    def step(carry, _):
        params, kept = carry
        updates, kept = update.update(params, kept, params)
        return (optax.apply_updates(params, updates), kept), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200)[0])
    for name, weight in tree.flatten(run((params, update.init(params)))[0]).items():
        assert np.sqrt((weight**2).mean()) < 0.1, name


def slots(kind, **settings):
    """{field of the optimizer's state: {weight: elements}}."""
    update = optimizer.make(Optimizer(kind=kind, **settings), steps=10)
    kept = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(update.init(weights())):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if keys and names[-1] in ("mu", "nu", "v", "v_row", "v_col", "ema"):
            keys = keys[keys[0] in ("adamw", "muon") :]
            kept.setdefault(names[-1], {})["/".join(keys)] = leaf.size
    return kept


def sizes(params):
    return {name: weight.size for name, weight in tree.flatten(params).items()}


def test_the_default_is_what_older_checkpoints_were_trained_with():
    """In its state's structure, which Orbax compares, and but for rounding in its numbers."""
    config = Optimizer(new_scale=2.0)
    update, params = optimizer.make(config, steps=10), weights(4)
    before = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optimizer.schedule(config, 10),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.01,
            mask=optimizer.decay_mask,
        ),
        optax.masked(optax.scale(2.0), {"backbone": False, "heads": True}),
    )
    kept, kept_before = update.init(params), before.init(params)
    assert jax.tree.structure(kept) == jax.tree.structure(kept_before)
    for seed in (5, 6):
        got, kept = jax.jit(update.update)(weights(seed), kept, params)
        want, kept_before = jax.jit(before.update)(weights(seed), kept_before, params)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
        jax.tree.map(close, (got, kept), (want, kept_before))


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
def test_moments_live_where_their_weights_do(kind):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P(*[None] * (x.ndim - 1), "fsdp"))
        ),
        {"backbone": weights()["backbone"]},
    )
    update, moving = optimizer.make(Optimizer(kind=kind), 10), frozenset(tree.flatten(params))
    abstract = state.abstract_state(params, update, moving, averages=True)
    initial = jax.jit(
        lambda: update.init(jax.tree.map(lambda x: jnp.zeros(x.shape), params)),
        out_shardings=state.shardings(abstract["opt"]),
    )()
    assert jax.tree.structure(initial) == jax.tree.structure(abstract["opt"])
    placed = {x.shape: x.sharding for x in jax.tree.leaves(params)}
    whole = NamedSharding(mesh, P())
    for leaf in jax.tree.leaves(abstract["opt"]):
        assert leaf.sharding == placed.get(leaf.shape, whole)
    assert state.shardings(abstract["ema"]) == state.shardings(params)


def test_groups_scale_the_rate_and_the_last_that_matches_counts():
    groups = {"backbone/.*": 0.5, ".*/(up|down)/kernel": 2.0}
    config = Optimizer(learning_rate=0.1, new_scale=3.0, groups=groups, **STILL)
    got = {
        name: np.abs(update).max() / 0.1
        for name, update in first_update(config, jax.tree.map(jnp.ones_like, weights())).items()
    }
    want = {
        "backbone/embedding/embedding": 0.5,
        "backbone/layers/norm/scale": 0.5,
        "backbone/layers/up/kernel": 2.0,
        "heads/kernel": 3.0,
    }
    assert got == pytest.approx(want, rel=1e-5)


def test_a_scale_of_0_holds_still():
    config = Optimizer(groups={".*": 0.0, "backbone/layers/.*": 1.0})
    assert optimizer.moving(config, sizes(weights())) == {
        "backbone/layers/up/kernel",
        "backbone/layers/norm/scale",
    }
    with pytest.raises(UserError, match="holds every weight still"):
        optimizer.moving(Optimizer(groups={".*": 0.0}), sizes(weights()))


def test_groups_and_kind_are_bound_by_gin():
    text = (
        "Optimizer.kind = 'muon'\nOptimizer.groups = {'backbone/.*': 0.1, '.*/scale': 0}\n"
        "Optimizer.schedule = 'wsd'\n"
    )
    got = loads(text, root="Optimizer")
    assert got.groups == {"backbone/.*": 0.1, ".*/scale": 0.0}
    assert (got.kind, got.schedule) == ("muon", "wsd")
    assert loads(dump(got), root="Optimizer") == got
    with pytest.raises(UserError, match="kind must be one of 'adamw', 'lion'"):
        loads("Optimizer.kind = 'adam'\n", root="Optimizer")


def test_a_pattern_that_matches_nothing_names_the_nearest():
    config = Optimizer(groups={"backbone/layer/up/kernel": 0.0})
    with pytest.raises(UserError, match="matches no weight") as error:
        optimizer.moving(config, sizes(weights()))
    assert "Nearest: backbone/layers/up/kernel" in error.value.remedy


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"b1": 1.0},
        {"b2": 1.0},
        {"warmup_steps": -1},
        {"groups": {"(": 1.0}},
        {"groups": {"a": -1.0}},
        {"ema": 1.0},
        {"decay_share": 2.0},
    ],
)
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Optimizer(**bad)
