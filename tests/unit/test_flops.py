"""The closed form of a step's operations against the products of the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_job
from flax import nnx

from slm_jax import config
from slm_jax.evaluation.compare import budget
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.nn import attention, tree
from slm_jax.training import flops, setup, step
from slm_jax.training.optimizer import Optimizer

PLAIN = BackboneConfig(64, 16, 3, 4, 2, 8, 24, rope_theta=1e4)
LORA = dataclasses.replace(PLAIN, lora_rank=3)
TIED = dataclasses.replace(PLAIN, tie_embeddings=True)
COLUMNS = 32
# Sizes, what moves, and whether the gradient goes through the layers.
CASES = {
    "everything": (PLAIN, lambda path: True, True),
    "everything, one table": (TIED, lambda path: True, True),
    "low-rank updates": (LORA, lambda path: "/lora_" in path, True),
    "the MLP": (PLAIN, lambda path: "/mlp/" in path, True),
    "what is read": (PLAIN, lambda path: "/embedding/" in path, True),
    "the last norm": (PLAIN, lambda path: path == "backbone/norm/scale", False),
    "the head": (PLAIN, lambda path: "/head/" in path, False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_held_still_has_no_gradient_of_its_own(case):
    sizes, moves, through = CASES[case]
    graphdef, params = tree.pure_params(nnx.eval_shape(lambda: Backbone(sizes, nnx.Rngs(0))))
    params = {"backbone": params}
    moving = frozenset(path for path in tree.flatten(params) if moves(path))

    def loss(moving, held, ids):
        model = tree.merge(graphdef, step.join(moving, held)["backbone"])
        positions = jnp.arange(COLUMNS)[None]
        hidden, _ = model(model.embed(ids), positions, jnp.ones_like(positions))
        return (model.logits(hidden) ** 2).sum()

    ids = jax.ShapeDtypeStruct((1, COLUMNS), jnp.int32)
    traced = flops.counted(jax.grad(loss), *step.split(params, moving), ids)
    whole_square = flops._attention(sizes, np.array([COLUMNS])) * (3 if through else 1)
    assert flops.step(sizes, np.array([COLUMNS]), moving=moving) + whole_square == traced
    if case.startswith("everything"):
        assert flops.step(sizes, np.array([COLUMNS])) + whole_square == traced


@pytest.mark.parametrize("grid", [False, True])
def test_a_job_counts_what_its_groups_leave(grid):
    """Held-still backbones cost a step their forward, and the way back to what moves below."""
    job = config.loads(tiny_job.gin("unused", "unused", **{"LossWeights.kl": 0.0}))
    if grid:
        files = ["pretrain.gin", "systems/mini_omni.gin", "systems/tiny/mini_omni.gin"]
        job = config.load(files, ["SEQ_LEN=64", "BATCH_SIZE=8"])
    rows = np.ones((job.batch_size, job.seq_len), int)

    def work(**groups):
        optimizer = Optimizer(groups=groups)
        made = setup.make(dataclasses.replace(job, optimizer=optimizer), jax.devices()[:1])
        return made.objective.work(rows)

    everything, heads = work(), work(**{".*": 0.0, "heads/.*kernel": 1.0})
    frozen = work(**{"backbone/layers/.*": 0.0})
    assert heads < 0.6 * everything < frozen < everything


def test_squares_are_whole_however_they_are_computed():
    """A CPU takes long rows head by head, and leaves out blocks that no query sees."""
    columns, heads, width = 512, 4, 8
    q = jax.ShapeDtypeStruct((1, columns, heads, width), jnp.float32)

    def attend(q, k, v):
        return (attention.attention(q, k, v, attention.MaskSpec(causal=True)) ** 2).sum()

    once = 2 * 2 * heads * width * columns**2
    assert flops.counted(attend, q, q, q) == once
    assert flops.counted(jax.grad(attend, argnums=(0, 1, 2)), q, q, q) == 3 * once


def test_what_is_computed_again_is_not_counted():
    """Backbone and depth transformer cost the same whatever they keep for the backward pass."""
    files = ["pretrain.gin", "systems/moshi.gin", "systems/tiny/moshi.gin"]

    def work(remat):
        bound = [f"BackboneConfig.remat={remat}", f"DepthConfig.remat={remat}"]
        job = config.load(files, ["SEQ_LEN=64", "BATCH_SIZE=8", *bound])
        made = setup.make(job, jax.devices()[:1])
        again = jax.make_jaxpr(made.step)(made.state, made.batch, made.reference)
        return made.objective.work(np.ones((8, 64), int)), flops._products(again.jaxpr)

    (kept, plain), (full, more) = work("none"), work("full")
    assert kept == full
    assert more > plain  # the program does compute products again


@pytest.mark.parametrize("held", ["backbone/layers/.*", "backbone/layers/mlp/.*"])
def test_a_row_of_a_comparison_has_no_gradient_of_what_is_held_still(held):
    sizes = {"BackboneConfig.lora_rank": 0, "LossWeights.kl": 0.0}
    job = config.loads(tiny_job.gin("unused", "unused", **sizes))
    columns, model = np.array([job.seq_len]), job.system.model

    def both(**groups):
        one = dataclasses.replace(job, optimizer=Optimizer(groups=groups))
        moving = setup.make(one, jax.devices()[:1]).moving
        closed = flops.step(model.backbone, columns, model.codebooks, moving=moving)
        return np.array([budget.row_operations(one), closed])

    traced, closed = both() - both(**{held: 0.0})
    assert traced == closed > 0
