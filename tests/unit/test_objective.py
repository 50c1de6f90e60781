"""Dropout, label smoothing and z-loss: in training, in every kind of model, and nowhere else."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_job
from flax import nnx
from grid_systems import SYSTEMS
from grid_systems import record as grid_record

from slm_jax import config
from slm_jax.data.rows import pack_row, stack
from slm_jax.models.system import System
from slm_jax.nn.tree import flatten, merge, pure_params, unflatten
from slm_jax.training import objective
from slm_jax.training.losses import LossWeights

REGULAR = LossWeights(kl=0.3, label_smoothing=0.1, z_loss=1e-2)


def dropping(value, rate):
    """The same dataclass with that rate wherever a network has one."""
    if not dataclasses.is_dataclass(value):
        return value
    changed = {
        field.name: rate if field.name == "dropout" else dropping(getattr(value, field.name), rate)
        for field in dataclasses.fields(value)
        if field.init
    }
    return dataclasses.replace(value, **changed)


def sums_of(job, params, batch, *keys):
    graphdef, _ = pure_params(nnx.eval_shape(lambda: job.system.build(nnx.Rngs(0))))
    with_one = jax.jit(objective.make(job, graphdef, params, batch).sums)
    return [jax.device_get(with_one(params, {}, batch, key)) for key in keys]


def test_speech_lm(tmp_path):
    job = config.loads(tiny_job.gin(tmp_path, tmp_path))
    records = [tiny_job.record(number, 0) for number in range(4)]
    batch = stack([pack_row(job.system.layout, 48, records[at : at + 2], (at,)) for at in (0, 2)])
    _, params = pure_params(job.system.build(nnx.Rngs(0)))

    def changed(losses, rate=0.0):
        system = System(job.system.layout, dropping(job.system.model, rate))
        return dataclasses.replace(job, losses=losses, system=system)

    key = jax.random.key(0)
    (plain,) = sums_of(job, params, batch, None)
    regular, evaluated = sums_of(changed(REGULAR), params, batch, key, None)
    dropped, again, other, still = sums_of(
        changed(LossWeights(kl=0.3), 0.5), params, batch, key, key, jax.random.key(1), None
    )
    for name, value in plain.items():
        assert evaluated[name] == pytest.approx(value, rel=1e-5)
        assert still[name] == pytest.approx(value, rel=1e-5)
        assert again[name] == dropped[name]
        assert abs(dropped[name] - value) > 1e-4 * value
        assert abs(dropped[name] - other[name]) > 1e-5 * value
    # log Z is that of nearly equal odds here, and smoothing costs nearly nothing.
    assert regular["text"] > plain["text"]
    assert regular["kl"] == pytest.approx(plain["kl"], rel=1e-5)  # no prediction of an id
    weight = float(batch["weights"][:, 1].sum())
    want = weight * 1e-2 * np.log(tiny_job.CODES[0]) ** 2
    assert regular["speech/0"] - plain["speech/0"] == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize(
    "name, part",
    [
        ("depth, weights per step", "depth"),
        ("tapped layers", "backbone"),
        ("second transformer, cross-attention", "second"),
        ("one level at a time", "backbone"),
    ],
)
def test_grid_lm(name, part):
    system = SYSTEMS[name]
    layout, model = system.layout, system.model
    changed = {part: dropping(getattr(model, part), 0.4)}
    batch = stack([pack_row(layout, 48, [grid_record(n)], (n,)) for n in (0, 1)])
    graphdef, params = pure_params(system.build(nnx.Rngs(0)))
    wide = {n: x * 100 if "heads/" in n else x for n, x in flatten(params).items()}
    params = unflatten(wide)  # heads begin so near zero that their losses would hardly move
    other_graphdef, _ = pure_params(
        nnx.eval_shape(
            lambda: System(layout, dataclasses.replace(model, **changed)).build(nnx.Rngs(0))
        )
    )

    @jax.jit
    def run():
        never, drops = merge(graphdef, params), merge(other_graphdef, params)
        keyed = [drops.losses(batch, jax.random.key(k)) for k in (0, 1)]
        return never.losses(batch), never.losses(batch, None, REGULAR.token_loss), *keyed

    plain, smooth, dropped, other = jax.device_get(run())
    assert all(smooth[name] > value for name, value in plain.items())
    moved = {n for n, value in plain.items() if abs(dropped[n] - value) > 1e-4 * value}
    reached = {
        "depth": {"depth", *(layout.rows[row].name for row in model.depth_rows(layout))},
        "second": plain.keys() - {"upstream"},
        "backbone": plain.keys(),
    }
    assert moved == set(reached[part])
    assert all(abs(dropped[n] - other[n]) > 1e-5 * plain[n] for n in moved)
