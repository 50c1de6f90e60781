"""Runs of equal arithmetic: rows of a batch and steps, so that all systems spend the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from slm_jax.data.schema import Record
from slm_jax.errors import UserError
from slm_jax.evaluation.compare.job import CompareJob
from slm_jax.models.system import System
from slm_jax.nn import tree
from slm_jax.streams import fingerprint
from slm_jax.training import objective, setup
from slm_jax.training.checkpoint import Checkpoints
from slm_jax.training.job import TrainJob
from slm_jax.training.losses import LossWeights

TOLERANCE = 0.02  # of the budget
_BUCKET = 64  # columns


class Plan(NamedTuple):
    """Rows of a batch, steps, and the share of the budget that they spend."""

    rows: int
    steps: int
    share: float


def plan(row: float, operations: float, steps: int, devices: int = 1) -> Plan:
    """Divides a budget.

    Args:
      row: operations of one row of a batch, forward and backward.
      operations: to be spent.
      steps: wanted; there are more or fewer where rows are whole.
      devices: that share the rows of a batch.

    Raises:
      UserError: the budget is too small to be met within `TOLERANCE`.
    """
    rows = devices * max(1, round(operations / steps / row / devices))
    done = max(1, round(operations / (rows * row)))
    share = done * rows * row / operations
    if abs(share - 1) > TOLERANCE:
        raise UserError(
            f"{done} steps of {row * rows:.3g} operations are {share:.1%} of the budget of "
            f"{operations:.3g}",
            "raise CompareJob.operations",
        )
    return Plan(rows, done, share)


def train_job(
    job: CompareJob, name: str, system: System, records: Sequence[Record], data: str
) -> tuple[TrainJob, Plan]:
    """The run of one system.

    Args:
      job: what is compared.
      name: of the system.
      system: itself.
      records: that a row must hold, each; its length is that of the longest.
      data: fingerprint of the shards.

    Returns:
      The run, whose folder is named by all that makes it what it is, and its plan.

    Raises:
      UserError: the budget is too small.
    """
    longest = max(system.layout.length(record) for record in records)
    wanted = TrainJob(
        name=name,
        system=system,
        data=job.data,
        text_tokenizer=job.text_tokenizer,
        taste=job.taste,
        losses=LossWeights(kl=0.0),  # the backbones start from random weights: nothing to keep
        optimizer=job.optimizer,
        seq_len=-(-longest // _BUCKET) * _BUCKET,
        seed=job.seed,
        prompts=0,
        runs=str(job.run_dir),
    )
    row = row_operations(wanted)
    share = plan(row, job.operations, job.steps, jax.device_count())
    planned = dataclasses.replace(
        wanted,
        batch_size=share.rows,
        steps=share.steps,
        log_every=max(1, share.steps // 4),
        eval_every=share.steps,
        checkpoints=Checkpoints(every=max(1, share.steps // 2), keep=1),
    )
    content = fingerprint(data, repr(dataclasses.replace(planned, runs="")))
    return dataclasses.replace(planned, name=f"{name}-{content[:8]}"), share


def row_operations(job: TrainJob) -> float:
    """Operations of a row, forward and backward: of whole squares of attention, and of padding.

    What the optimizer holds still costs its forward, and the way back to what moves below it.
    """
    program = setup.make(dataclasses.replace(job, batch_size=1), jax.devices()[:1])
    aim, params = program.objective, program.state["params"]
    return objective.traced_work(aim.sums, aim.coefficients, params, program.moving, program.batch)


def parameters(params: tree.Params, text_ids: int) -> tuple[int, int]:
    """How many there are, and how many of them in no table or head of the text's ids.

    Args:
      params: of a model.
      text_ids: how many the text has; 0 for no text.
    """
    shapes = [np.shape(leaf) for leaf in tree.flatten(params).values()]
    sizes = [int(np.prod(shape)) for shape in shapes]
    own = [
        size
        for size, shape in zip(sizes, shapes, strict=True)
        if not (text_ids and max(shape, default=0) >= text_ids)
    ]
    return sum(sizes), sum(own)
