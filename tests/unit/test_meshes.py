"""Every mesh of gin/parallel on eight devices: the loss and the gradient of one device.

Sums are added up in another order on each, so equal means within 1e-5, in f32: of the loss, and in
each array of the gradient of its largest entry.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import grid_systems
import jax
import numpy as np
import optax
import pytest
import tiny_job

from slm_jax import config
from slm_jax.config import GIN_DIR
from slm_jax.data.registry import MixtureSpec
from slm_jax.data.rows import pack_row, stack
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.planning.aot import COLLECTIVES
from slm_jax.training import partitioning, setup, state, step
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.job import TrainJob
from slm_jax.training.partitioning import Parallel

MESHES = sorted(path.stem for path in (GIN_DIR / "parallel").glob("*.gin"))
ALONE = Parallel(data=1)
ROWS, COLUMNS = 16, 64
TOLERANCE = 1e-5
KEEP_GRADIENT = optax.trace(decay=0.0)  # an optimizer whose state is the gradient


def on(mesh):
    """`Parallel` of a file of gin/parallel."""
    return config.load([f"parallel/{mesh}.gin"], root="Parallel")


def taste():
    """Losses of text and speech; the heads read a word that stands in another column."""
    settings = {"BackboneConfig.lora_rank": 0, "SpeechLMConfig.head": "word_tokens"}
    text = tiny_job.gin("data", "runs", **settings | {"LossWeights.kl": 0.0})
    return config.loads(text), tiny_job.record


def depth():
    """A depth transformer over the columns that are chosen of each row."""
    system = grid_systems.SYSTEMS["depth in some columns"]
    return TrainJob("tiny", system, MixtureSpec((("none", 1.0),))), grid_systems.record


SYSTEMS = {"taste": taste, "depth": depth}


@functools.cache
def job_and_batch(system):
    """The job, and a batch whose rows hold two records, one, or none."""
    job, record = SYSTEMS[system]()
    records = iter([record(number, 4) for number in range(2 * ROWS)])
    rows = [[next(records) for _ in range(number % 3)] for number in range(ROWS)]
    packed = [pack_row(job.system.layout, COLUMNS, row, (n,)) for n, row in enumerate(rows)]
    return dataclasses.replace(job, batch_size=ROWS, seq_len=COLUMNS), stack(packed)


def program_of(system, parallel, accumulate=1):
    job = dataclasses.replace(job_and_batch(system)[0], parallel=parallel, accumulate=accumulate)
    return setup.make(job, jax.devices()[:1] if parallel is ALONE else None)


def start(program):
    """(state, its abstract form): the same numbers on every mesh."""
    abstract = state.abstract_state(program.state["params"], KEEP_GRADIENT, program.moving)
    values = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    random = np.random.default_rng(0)
    values["params"] = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype) * 0.3, values["params"]
    )
    return jax.device_put(values, state.shardings(abstract)), abstract


class Ran(NamedTuple):
    """A step: its metrics, its gradient by path, and how often each collective is in it."""

    metrics: dict
    gradient: dict
    collectives: dict


@functools.cache
def run(system, mesh, accumulate=1):
    """A step of the system on a mesh of gin/parallel, or with None on one device."""
    program = program_of(system, ALONE if mesh is None else on(mesh), accumulate)
    now, abstract = start(program)
    update = step.make_step(*program.objective[:3], KEEP_GRADIENT, program.moving, accumulate)
    with jax.set_mesh(program.mesh):
        compiled = (
            jax.jit(update, out_shardings=(state.shardings(abstract), None))
            .lower(abstract, program.batch, {})
            .compile()
        )
        batch = partitioning.put_batch(job_and_batch(system)[1], program.mesh, ROWS)
        after, metrics = compiled(now, batch, {})
    assert jax.tree.map(lambda x: x.sharding, after) == state.shardings(abstract)
    text = compiled.as_text()
    calls = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}
    gradient = tree.flatten(jax.device_get(after["opt"].trace))
    return Ran(jax.device_get(metrics), gradient, {kind: n for kind, n in calls.items() if n})


def check_equal(found, expected):
    for name, pair in expected.metrics["losses"].items():
        np.testing.assert_allclose(found.metrics["losses"][name], pair, TOLERANCE, err_msg=name)
    ours, theirs = (ran.metrics["objective"] for ran in (found, expected))
    np.testing.assert_allclose(ours, theirs, TOLERANCE)
    for path, value in expected.gradient.items():
        off = np.abs(found.gradient[path] - value).max() / np.abs(value).max()
        assert off <= TOLERANCE, path


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_loss_and_gradient_are_those_of_one_device(system, mesh):
    alone, found = run(system, None), run(system, mesh)
    assert all(np.abs(value).max() > 0 for value in alone.gradient.values())
    assert not alone.collectives
    check_equal(found, alone)
    # Weights and keys are gathered and gradients summed, but rows and columns stay where they are:
    # where each device has all of the products, nothing is swapped.
    swapped = {"all-to-all", "collective-permute"} & found.collectives.keys()
    assert not swapped or mesh == "fsdp_tp"
    if system == "taste":  # in microbatches, too, which send nothing of another kind
        cut = run(system, mesh, accumulate=2)
        check_equal(cut, alone)
        assert cut.collectives.keys() <= found.collectives.keys()


@pytest.mark.parametrize("target", ["context", "multislice", None])
def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, target):
    """From parameters and moments divided by products to columns, to slices, to one device."""
    saved, _ = start(program_of("taste", on("fsdp_tp")))
    with Store(tmp_path, Checkpoints(every=1)) as store:
        store.save(saved, 1, {"config": ""})
    program = program_of("taste", ALONE if target is None else on(target))
    _, abstract = start(program)
    with Store(tmp_path, Checkpoints(every=1)) as store:
        found = store.restore(abstract)
    assert jax.tree.map(lambda x: x.sharding, found) == state.shardings(abstract)
    jax.tree.map(np.testing.assert_array_equal, found, saved)


def test_columns_that_do_not_divide_are_refused():
    job = dataclasses.replace(job_and_batch("taste")[0], parallel=on("context"), seq_len=63)
    with pytest.raises(UserError, match="seq_len 63 does not divide over context = 2"):
        setup.make(job)
