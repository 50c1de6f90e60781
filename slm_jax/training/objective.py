"""What a model is trained on: its named losses, their weights, and what each mean counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from slm_jax.models.grid_config import GridLMConfig
from slm_jax.models.speech_lm import without_lora
from slm_jax.nn import tree
from slm_jax.nn.losses import cross_entropy
from slm_jax.training import flops, step
from slm_jax.training.job import TrainJob
from slm_jax.training.losses import loss_weights, losses


class Objective(NamedTuple):
    """The losses of a model.

    Attributes:
      sums, weights, coefficients: what `step.make_step` takes.
      work: operations of a step on a batch whose "segment_ids" are given.
    """

    sums: step.LossSums
    weights: step.LossWeights
    coefficients: Mapping[str, float]
    work: Callable[[np.ndarray], float]


def make(
    job: TrainJob,
    graphdef: nnx.GraphDef,
    abstract: tree.Params,
    example: step.Batch,
    moving: frozenset[str] | None = None,
) -> Objective:
    """The objective of the job's model.

    Args:
      job: with the backbone's sizes filled in.
      graphdef, abstract: the model.
      example: one row of a batch.
      moving: paths of the parameters that the optimizer changes; None for all.
    """
    if isinstance(job.system.model, GridLMConfig):
        moving = frozenset(tree.flatten(abstract)) if moving is None else moving
        return _of_grid(job, graphdef, abstract, example, moving)
    return _of_words(job, graphdef, moving)


def _of_grid(
    job: TrainJob,
    graphdef: nnx.GraphDef,
    abstract: tree.Params,
    example: step.Batch,
    moving: frozenset[str],
) -> Objective:
    module = tree.merge(graphdef, abstract)
    coefficients = job.system.model.coefficients(job.system.layout)

    def sums(
        params: tree.Params, reference: tree.Params, batch: step.Batch, key: jax.Array | None
    ) -> dict[str, Any]:
        token_loss = cross_entropy if key is None else job.losses.token_loss
        return tree.merge(graphdef, params).losses(batch, key, token_loss)

    a_row = traced_work(sums, coefficients, abstract, moving, example)
    return Objective(sums, module.weights, coefficients, lambda segments: a_row * len(segments))


def traced_work(
    sums: step.LossSums,
    coefficients: Mapping[str, float],
    params: tree.Params,
    moving: frozenset[str],
    batch: step.Batch,
) -> float:
    """Operations of the losses and of the gradients of what moves, as `flops.counted` counts.

    Args:
      sums, coefficients: of an objective without a reference.
      params: of the model, or their shapes.
      moving: paths of those that the optimizer changes.
      batch: its rows are counted in whole, padding included.
    """

    def total(moving: tree.Params, held: tree.Params, batch: step.Batch) -> jax.Array:
        found = sums(step.join(moving, held), {}, batch, None)
        return sum(found[name] for name in coefficients)

    return flops.counted(jax.grad(total), *step.split(params, moving), batch)


def _of_words(job: TrainJob, graphdef: nnx.GraphDef, moving: frozenset[str] | None) -> Objective:
    """Text, speech levels, and the distance from the frozen text LLM."""
    compares = job.losses.kl > 0
    model = job.system.model
    continuous = model.head == "continuous"

    def sums(
        params: tree.Params, reference: tree.Params, batch: step.Batch, key: jax.Array | None
    ) -> dict[str, Any]:
        outputs = tree.merge(graphdef, params)(batch, key)
        token_loss = cross_entropy if key is None else job.losses.token_loss
        logits = None
        if compares:
            frozen = params | reference if reference else without_lora(params)
            frozen = jax.lax.stop_gradient(frozen)
            logits = tree.merge(graphdef, frozen).text_logits(batch)
        found = losses(outputs, batch, logits, token_loss)
        return {name: total for name, (total, _) in found.items()}

    def weights(batch: step.Batch) -> dict[str, Any]:
        return loss_weights(batch, continuous, compares)

    def work(segment_ids: np.ndarray) -> float:
        lengths = flops.segment_lengths(segment_ids)
        return flops.step(model.backbone, lengths, model.codebooks, compares, moving)

    coefficients = job.losses.coefficients(len(model.codebooks), continuous)
    return Objective(sums, weights, coefficients, work)
