"""The average of the weights: its formula, what has one, where it lives, and who reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_job
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import checkpoint, state, step
from slm_jax.training.checkpoint import Checkpoints, Store

EMA, RATE = 0.5, 0.25
MOVING = frozenset({"q/kernel", "norm/scale"})
UPDATE = optax.sgd(RATE)


def abstract_state(shape=(2, 4), averages=True):
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def weight(*size, spec=()):
        return jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    params = {
        "q": {"kernel": weight(8, 4, spec=("fsdp", "data"))},
        "norm": {"scale": weight(3)},
        "held": {"kernel": weight(2)},
    }
    return state.abstract_state(params, UPDATE, MOVING, averages)


def initial(abstract):
    params = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 2.0, np.float32), x.sharding), abstract["params"]
    )
    return state.initial_state(params, UPDATE, MOVING, abstract)


def run(now, steps, ema=EMA):
    """Towards zero: the gradient of a weight is the weight."""

    def sums(params, reference, batch, key):
        return {"square": 0.5 * sum((x**2).sum() for x in jax.tree.leaves(params)) * batch["on"]}

    update = step.make_step(
        sums, lambda batch: {"square": jnp.float32(1)}, {"square": 1.0}, UPDATE, MOVING, ema=ema
    )
    placed = jax.tree.map(lambda x: x.sharding, now)
    jitted = jax.jit(update, out_shardings=(placed, None), donate_argnums=0)
    for on in steps:
        now, _ = jitted(now, {"on": jnp.float32(on)}, {})
    return now


def test_average_follows_its_formula_and_forgets_where_it_began():
    now = run(initial(abstract_state()), [1] * 9)
    weight = average = 2.0
    for number in range(9):
        weight *= 1 - RATE
        stays = min(EMA, (1 + number) / (10 + number))
        average = stays * average + (1 - stays) * weight
    for path in MOVING:
        np.testing.assert_allclose(tree.flatten(now["params"])[path], weight, rtol=1e-5)
        np.testing.assert_allclose(tree.flatten(now["ema"])[path], average, rtol=1e-5)


def test_a_step_that_is_not_finite_leaves_the_average():
    once = run(initial(abstract_state()), [1])
    spoilt = run(initial(abstract_state()), [1, np.nan])
    jax.tree.map(np.testing.assert_array_equal, once["ema"], spoilt["ema"])


def test_only_weights_that_move_have_one_and_it_lives_where_they_do():
    abstract = abstract_state()
    now = run(initial(abstract), [1])
    flat = tree.flatten(now["ema"])
    assert flat.keys() == MOVING
    for path, value in flat.items():
        assert value.sharding == tree.flatten(abstract["params"])[path].sharding
    used = tree.flatten(state.averaged(now))
    assert used["q/kernel"] is flat["q/kernel"]
    assert used["held/kernel"] is now["params"]["held"]["kernel"]


def save(folder, now):
    with Store(folder, Checkpoints()) as store:
        about = {"config": tiny_job.gin(folder / "data", folder), "streams": {}}
        store.save(now, 1, about, force=True)


def test_saved_restored_on_another_mesh_and_read_by_decoding(tmp_path):
    now = run(initial(abstract_state()), [1])
    save(tmp_path, now)
    other = abstract_state((4, 2))
    with Store(tmp_path, Checkpoints()) as store:
        found = store.restore(other)
    assert found["ema"]["q"]["kernel"].sharding == other["ema"]["q"]["kernel"].sharding
    jax.tree.map(np.testing.assert_array_equal, found, now)

    averaged, last = (
        tree.flatten(checkpoint.load_params(tmp_path, average=choice).params)
        for choice in (True, False)
    )
    for path in MOVING:
        np.testing.assert_array_equal(averaged[path], tree.flatten(now["ema"])[path])
        np.testing.assert_array_equal(last[path], tree.flatten(now["params"])[path])
        assert not np.array_equal(averaged[path], last[path])
    np.testing.assert_array_equal(averaged["held/kernel"], last["held/kernel"])


def test_a_run_without_one_cannot_go_on_with_one_but_the_other_way_round(tmp_path):
    save(tmp_path / "with", initial(abstract_state()))
    save(tmp_path / "without", initial(abstract_state(averages=False)))
    with Store(tmp_path / "with", Checkpoints()) as store:
        assert "ema" not in store.restore(abstract_state(averages=False))
    with Store(tmp_path / "without", Checkpoints()) as store:
        with pytest.raises(UserError, match=r"is of another optimizer: 2 arrays.* ema/"):
            store.restore(abstract_state())
