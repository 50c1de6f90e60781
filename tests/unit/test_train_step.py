"""The step on one device and on eight, whole and in microbatches, and on a spoilt batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.nn import tree
from slm_jax.training import flops, optimizer, partitioning, state, step
from slm_jax.training.optimizer import Optimizer
from slm_jax.training.partitioning import Parallel

CONFIG = BackboneConfig(
    vocab_size=48, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, lora_rank=2
)
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "kv_heads": "tensor",
         "vocab": "tensor"}  # fmt: skip
COEFFICIENTS = {"next": 1.0, "even": 0.5}
UPDATE = optimizer.make(Optimizer(learning_rate=1e-2, warmup_steps=0), steps=10)
BATCH, LENGTH = 16, 12


def build(dropout=0.0):
    return Backbone(dataclasses.replace(CONFIG, dropout=dropout), nnx.Rngs(0))


def batch():
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.vocab_size, (BATCH, LENGTH + 1), dtype=np.int32)
    weights = (random.random((BATCH, LENGTH)) < np.linspace(0.1, 0.9, BATCH)[:, None]) * 1.0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weights.astype(np.float32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
    }


def weights(rows):
    return {"next": rows["weights"].sum(), "even": (rows["weights"] * even(rows)).sum()}


def even(rows):
    return rows["targets"] % 2 == 0


def loss_sums(graphdef):
    def sums(params, reference, rows, key):
        model = tree.merge(graphdef, params)
        hidden, _ = model(model.embed(rows["tokens"]), rows["positions"], key=key)
        logged = jax.nn.log_softmax(model.logits(hidden))
        loss = -jnp.take_along_axis(logged, rows["targets"][..., None], -1)[..., 0]
        loss *= rows["weights"]
        return {"next": loss.sum(), "even": (loss * even(rows)).sum()}

    return sums


def run(parallel, steps=2, accumulate=1, only_lora=False, spoil=False, dropout=0.0):
    """Two steps from seed 0; returns (metrics of each, parameters by path, state, abstract)."""
    count = parallel.data * parallel.fsdp * parallel.tensor
    mesh = partitioning.make_mesh(parallel, jax.devices()[:count])
    with jax.set_mesh(mesh):
        made = functools.partial(build, dropout)
        graphdef, abstract_params = state.skeleton(made, parallel.rules, mesh)
        paths = [p for p in tree.flatten(abstract_params) if not only_lora or "lora" in p]
        trainable = frozenset(paths)
        abstract = state.abstract_state(abstract_params, UPDATE, trainable)
        params = state.initial_params(made, abstract_params)
        now = state.initial_state(params, UPDATE, trainable, abstract)
        update = step.make_step(
            loss_sums(graphdef), weights, COEFFICIENTS, UPDATE, trainable, accumulate
        )
        placed = state.shardings(abstract)
        jitted = jax.jit(
            update,
            in_shardings=(placed, partitioning.batch_shardings(batch(), mesh), None),
            out_shardings=(placed, partitioning.replicated(mesh)),
            donate_argnums=0,
        )
        rows = batch()
        if spoil:
            rows["weights"][3, 4] = np.nan
        history = []
        for _ in range(steps):
            now, metrics = jitted(now, partitioning.put_batch(rows, mesh, BATCH), {})
            history.append(jax.device_get(metrics))
        flat = {path: np.asarray(value) for path, value in tree.flatten(now["params"]).items()}
        return history, flat, now, abstract


@pytest.fixture(scope="module")
def single():
    return run(Parallel(data=1))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_eight_devices_equal_one(single, shape):
    history, params, now, abstract = run(Parallel(*shape, rules=RULES))
    for ours, theirs in zip(history, single[0], strict=True):
        np.testing.assert_allclose(ours["objective"], theirs["objective"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-4)
        for name, pair in theirs["losses"].items():
            np.testing.assert_allclose(ours["losses"][name], pair, rtol=1e-5)
    for path, value in single[1].items():
        # Adam divides by the gradient's own size: where that is nearly 0, rounding is amplified.
        np.testing.assert_allclose(params[path], value, atol=2e-3, err_msg=path)
        assert np.mean(np.abs(params[path] - value)) < 1e-5, path
    assert jax.tree.map(lambda x: x.sharding, now) == state.shardings(abstract)


def test_gradient_is_the_full_batch_in_microbatches(single):
    history, params, _, _ = run(Parallel(data=1), accumulate=4)
    for ours, theirs in zip(history, single[0], strict=True):
        np.testing.assert_allclose(ours["objective"], theirs["objective"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-4)
        for name, pair in theirs["losses"].items():
            np.testing.assert_allclose(ours["losses"][name], pair, rtol=1e-5)
    for path, value in single[1].items():
        assert np.mean(np.abs(params[path] - value)) < 1e-5, path


def test_microbatches_on_eight_devices(single):
    history, _, _, _ = run(Parallel(2, 2, 2, rules=RULES), accumulate=2)
    np.testing.assert_allclose(history[1]["objective"], single[0][1]["objective"], rtol=1e-5)


def test_dropout_is_the_same_on_any_mesh(single):
    one = run(Parallel(data=1), accumulate=2, dropout=0.5)[0]
    eight = run(Parallel(2, 2, 2, rules=RULES), accumulate=2, dropout=0.5)[0]
    for ours, theirs, whole in zip(eight, one, single[0], strict=True):
        np.testing.assert_allclose(ours["objective"], theirs["objective"], rtol=1e-5)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-4)
        assert abs(theirs["objective"] - whole["objective"]) > 1e-2


def test_chance_is_folded_from_seed_step_and_microbatch():
    def sums(params, reference, rows, key):
        return {"drawn": params["kernel"].sum() * 0 + jax.random.normal(key)}

    def drawn(seed, at, accumulate):
        weights = {"kernel": jnp.ones(1)}
        update = step.make_step(
            sums,
            lambda rows: {"drawn": jnp.float32(1)},
            {"drawn": 1.0},
            UPDATE,
            frozenset(weights),
            accumulate,
            seed=seed,
        )
        now = {"params": weights, "opt": UPDATE.init(weights), "step": jnp.int32(at)}
        return jax.jit(update)(now, {"row": jnp.zeros((4, 1))}, {})[1]["objective"]

    def expected(seed, at, accumulate):
        own = jax.random.fold_in(jax.random.key(seed), at)
        return sum(jax.random.normal(jax.random.fold_in(own, m)) for m in range(accumulate))

    for case in ((0, 0, 1), (0, 7, 1), (1, 7, 1), (1, 7, 2)):
        np.testing.assert_allclose(drawn(*case), expected(*case), rtol=1e-5)


def test_evaluation_drops_nothing():
    found = []
    for dropout in (0.0, 0.5):
        graphdef, params = tree.pure_params(build(dropout))
        found.append(
            jax.jit(step.make_evaluation(loss_sums(graphdef), weights))(params, batch(), {})
        )
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_no_gradient_is_computed_of_what_is_held_still():
    graphdef, params = tree.pure_params(build())
    paths = frozenset(tree.flatten(params))
    groups = {".*": 0.0, "norm/scale": 1.0}

    def products(moving):
        update = step.make_step(loss_sums(graphdef), weights, COEFFICIENTS, UPDATE, moving)
        opt = UPDATE.init(step.split(params, moving)[0])
        now = {"params": params, "opt": opt, "step": jnp.int32(0)}
        return flops.counted(update, now, batch(), {})

    forward = flops.counted(step.make_evaluation(loss_sums(graphdef), weights), params, batch(), {})
    head = 2 * BATCH * LENGTH * CONFIG.width * CONFIG.vocab_size
    everything = products(optimizer.moving(Optimizer(), paths))
    assert everything > 2.5 * forward
    # The last norm: backwards through the head, and no further.
    assert products(optimizer.moving(Optimizer(groups=groups), paths)) == forward + head


def test_objective_is_the_weighted_sum_of_means(single):
    losses = single[0][0]["losses"]
    expected = sum(COEFFICIENTS[n] * total / weight for n, (total, weight) in losses.items())
    np.testing.assert_allclose(single[0][0]["objective"], expected, rtol=1e-6)
    assert losses["next"][1] == batch()["weights"].sum()


def test_only_trainable_parameters_move_and_have_moments():
    before = run(Parallel(data=1), steps=0, only_lora=True)[1]
    _, after, now, _ = run(Parallel(data=1), only_lora=True)
    for path, value in before.items():
        assert np.array_equal(value, after[path]) == ("lora" not in path), path
    moments = [leaf for leaf in jax.tree.leaves(now["opt"]) if leaf.ndim]
    assert len(moments) == 2 * sum("lora" in path for path in before)


def test_a_batch_that_is_not_finite_changes_nothing():
    before = run(Parallel(data=1), steps=0)[1]
    history, after, now, _ = run(Parallel(data=1), steps=1, spoil=True)
    assert not history[0]["finite"]
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(now)))


def test_imported_weights_are_kept_and_the_rest_is_random():
    mesh = partitioning.make_mesh(Parallel(data=8))
    partial = state.skeleton(build, RULES, mesh).params
    leaf = partial["embedding"]["embedding"]
    table = state.place(np.full(leaf.shape, 0.5, np.float32), leaf.sharding, leaf.dtype)
    params = state.initial_params(build, partial | {"embedding": {"embedding": table}})
    assert params["embedding"]["embedding"] is table
    assert np.std(np.asarray(params["head"]["kernel"])) > 0
