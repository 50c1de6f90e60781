"""Which steps are left out, what stays as it was then, and the wrapper in the trainer's step."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_job

from slm_jax import config
from slm_jax.training import optimizer as optimizers
from slm_jax.training import setup, skipstep, state, step
from slm_jax.training.goodput import Goodput
from slm_jax.training.optimizer import Optimizer
from slm_jax.training.skipstep import SkipSpikes
from slm_jax.training.watch import Watch

PARAMS = {"a": jnp.ones(3)}
CONFIG = SkipSpikes(window=16, threshold=5.0)


def run(losses, gradients=None, config=CONFIG):
    """Adam under the wrapper; weights, state and count after each step."""
    update = skipstep.skip_spikes(optax.adam(0.1), config)
    params, kept, history = PARAMS, update.init(PARAMS), []
    gradients = noise(len(losses), seed=2) if gradients is None else gradients
    jitted = jax.jit(lambda g, s, p, v: update.update(g, s, p, value=v))
    for loss, gradient in zip(losses, gradients, strict=True):
        updates, kept = jitted({"a": jnp.full(3, gradient)}, kept, params, loss)
        params = optax.apply_updates(params, updates)
        history.append((np.asarray(params["a"]), kept))
    return history


def skipped(history):
    return [int(kept.skipped) for _, kept in history]


def noise(steps, seed=0):
    return 2 + 0.1 * np.random.default_rng(seed).standard_normal(steps)


def test_a_spike_moves_nothing_and_is_counted():
    losses = noise(20)
    losses[17] = 4.0
    history = run(losses)
    assert skipped(history) == [0] * 17 + [1] * 3
    (before, kept), (at, left), (after, _) = history[16:19]
    np.testing.assert_array_equal(before, at)
    assert not np.array_equal(at, after)
    for ours, theirs in zip(jax.tree.leaves(left.inner), jax.tree.leaves(kept.inner), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_large_gradient_is_a_spike_too():
    gradients = noise(20, seed=1)
    gradients[17] = 20.0
    assert skipped(run(noise(20), gradients)) == [0] * 17 + [1] * 3


def test_without_spikes_nothing_changes():
    losses = noise(40)
    with jax.disable_jit():  # two programs may round otherwise
        ours = run(losses, losses)
    update = optax.adam(0.1)
    params, kept = PARAMS, update.init(PARAMS)
    for (weights, _), gradient in zip(ours, losses, strict=True):
        with jax.disable_jit():
            updates, kept = update.update({"a": jnp.full(3, gradient)}, kept, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(weights, params["a"])
    assert skipped(ours)[-1] == 0


def test_nothing_is_left_out_before_half_of_the_window():
    losses = noise(9)
    losses[7] = 4.0
    assert skipped(run(losses))[7] == 0


def test_a_lasting_change_is_let_through():
    losses = np.concatenate([noise(128), noise(12) + 10])
    count = skipped(run(losses, config=SkipSpikes()))
    assert count[128] == 1 and count[-1] == count[-6] == 4


def test_mean_and_deviation_are_those_of_the_last_window():
    hundreds, ones = noise(16) * 100, noise(17, seed=3)
    assert skipped(run(np.concatenate([hundreds, ones, [4.0]])))[-2:] == [0, 1]
    assert skipped(run(np.concatenate([hundreds, ones[:10], [4.0]])))[-1] == 0


def test_none_is_the_optimizer_itself():
    update = optax.adam(0.1)
    assert skipstep.skip_spikes(update, None) is update


def test_in_the_step_of_the_trainer():
    """A batch a thousand times too hot: weights stay, `skipped` is measured, moments are placed."""
    update = optimizers.make(Optimizer(warmup_steps=0, skip=SkipSpikes(window=4)), steps=10)
    weight = {"kernel": jnp.ones((4, 2))}

    def sums(params, _reference, rows, _key):
        return {"loss": jnp.square(rows["x"] @ params["kernel"]).sum()}

    run_step = jax.jit(
        step.make_step(
            sums, lambda rows: {"loss": rows["x"].size}, {"loss": 1.0}, update, {"kernel"}
        )
    )
    now = {"params": weight, "opt": update.init(weight), "step": jnp.int32(0)}
    draw = np.random.default_rng(0)
    for number in range(8):
        x = draw.standard_normal((8, 4)).astype(np.float32) * (1000 if number == 6 else 1)
        before = now["params"]["kernel"]
        now, measured = run_step(now, {"x": x}, {})
        assert int(measured["skipped"]) == (number >= 6)
        assert bool(measured["finite"])
        assert np.array_equal(before, now["params"]["kernel"]) == (number == 6)
    assert int(now["step"]) == 8


def test_its_state_is_placed_like_the_weights():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    params = {"kernel": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=placed)}
    update = optimizers.make(Optimizer(skip=SkipSpikes()), steps=10)
    found = state.abstract_state(params, update, frozenset(["kernel"]))["opt"]
    assert found.recent.sharding.is_fully_replicated
    moments = [leaf for leaf in jax.tree.leaves(found.inner) if leaf.shape == (8, 2)]
    assert len(moments) == 2 and all(leaf.sharding == placed for leaf in moments)


@pytest.mark.parametrize("bad", [{"window": 3}, {"threshold": 0.0}])
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SkipSpikes(**bad)


def test_the_rate_that_is_logged_is_that_of_the_update():
    """The schedule does not advance at a step that is left out."""
    job = config.loads(tiny_job.gin("data", "runs"))
    written = []
    watch = Watch(setup.make(job), None, np.arange(8), Mock(), Mock(), Goodput())
    watch.log.write = lambda at, split, losses, **numbers: written.append(numbers)
    measured = {"losses": {}, "finite": True, "objective": 1.0, "grad_norm": 1.0, "digest": 1}
    for skipped in ({}, {"skipped": 3}):
        watch.trained((9, (measured | skipped, np.ones((8, 48), np.int32), 0.0)))
    rate = optimizers.schedule(job.optimizer, job.steps)
    found = [numbers["learning_rate"] for numbers in written if "learning_rate" in numbers]
    assert found == pytest.approx([float(rate(8)), float(rate(5))])
    assert found[0] != pytest.approx(found[1])
