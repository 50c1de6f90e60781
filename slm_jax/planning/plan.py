"""From hours of audio to steps, days and dollars.

    columns   hours x 3600 x columns a second of the layout, of utterances that fit into a row
    steps     columns x epochs / (rows of a batch x columns of a row x fill)
    work      steps x operations of a step, as `slm_jax.training.flops` counts: causal, packed,
              what is needed, nothing for padding or what is computed again
    time      work / (chips x peak of one x MFU)
    cost      time x chips x price

Fill and operations are those of the packed rows of the measured utterances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slm_jax.data import packing
from slm_jax.data.schema import WORDS
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.planning import memory, speech
from slm_jax.planning.accelerators import Accelerator
from slm_jax.planning.memory import Memory
from slm_jax.planning.speech import Pace, Rates
from slm_jax.training import partitioning, setup
from slm_jax.training.job import TrainJob

HOURS_A_DAY = 24
ROWS = 32  # at least so many are packed, or the last of them would count too much


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no shape tells.

    Attributes:
      mfu: share of the chips' peak that a step reaches.
      price: US dollars a chip and hour; None for that of the accelerator's table.
      epochs: how often the audio is seen.
    """

    mfu: float = 0.4
    price: float | None = None
    epochs: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu must be above 0 and at most 1, got {self.mfu}")
        if not self.epochs > 0:
            raise ValueError(f"epochs must be above 0, got {self.epochs}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job takes.

    Attributes:
      hours: of audio.
      pace: of its words.
      rates: of the layout.
      columns: of all epochs, without those of utterances that no row takes.
      skipped: share of the utterances that are longer than a row.
      mesh: sizes of its axes.
      rows: of the global batch; the job's, or the least that the mesh divides.
      fill: share of a row's columns that hold speech.
      parameters, trained: how many the model has, and how many of them move.
      step_work: operations of a step.
      steps: for all epochs.
      memory: of one device.
      step_seconds: of a step.
      price: US dollars a chip and hour.
      days, cost: of all steps; the cost in US dollars.
    """

    hours: float
    pace: Pace
    rates: Rates
    columns: float
    skipped: float
    mesh: Mapping[str, int]
    rows: int
    fill: float
    parameters: int
    trained: int
    step_work: float
    steps: int
    memory: Memory
    step_seconds: float
    price: float
    days: float
    cost: float

    @property
    def work(self) -> float:
        """Operations of all steps."""
        return self.steps * self.step_work


def make(
    job: TrainJob,
    accelerator: Accelerator,
    hours: float,
    records: Sequence[Mapping[str, Any]],
    pace: Pace,
    assumed: Assumed,
) -> Plan:
    """Plans a job.

    Args:
      job: with a backbone; its batch is raised where the mesh does not divide it.
      accelerator: to run on.
      hours: of audio.
      records: that stand for it, with all streams of the layout and durations.
      pace: how fast it is spoken.
      assumed: what else is.

    Raises:
      UserError: the mesh does not fit the chips, or no record fits into a row.
    """
    mesh = memory.mesh_of(job, accelerator)
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * job.accumulate
    rows = -(-job.batch_size // shares) * shares
    job = dataclasses.replace(job, batch_size=rows)
    lengths = np.array([job.system.layout.length(record) for record in records])
    segments = packed(job, lengths)
    fill = float((segments > 0).mean())
    rates = speech.rates(job.system.layout, records)
    seconds = np.array([record[WORDS].duration for record in records])
    fits = lengths <= job.seq_len
    usable = float(lengths[fits].sum() / seconds.sum())
    columns = hours * 3600 * usable * assumed.epochs
    steps = math.ceil(columns / (rows * job.seq_len * fill))
    alone = dataclasses.replace(job, parallel=partitioning.Parallel(), batch_size=1, accumulate=1)
    program = setup.make(alone, jax.devices()[:1])
    sizes = {p: math.prod(x.shape) for p, x in tree.flatten(program.state["params"]).items()}
    step_work = program.objective.work(segments) / len(segments) * rows
    step_seconds = step_work / (accelerator.peak * assumed.mfu)
    price = accelerator.chip.price if assumed.price is None else assumed.price
    days = steps * step_seconds / 3600 / HOURS_A_DAY
    return Plan(
        hours=hours,
        pace=pace,
        rates=rates,
        columns=columns,
        skipped=float(1 - fits.mean()),
        mesh=dict(mesh.shape),
        rows=rows,
        fill=fill,
        parameters=sum(sizes.values()),
        trained=sum(sizes[path] for path in program.moving),
        step_work=step_work,
        steps=steps,
        memory=memory.of(job, mesh),
        step_seconds=step_seconds,
        price=price,
        days=days,
        cost=days * HOURS_A_DAY * accelerator.chips * price,
    )


def packed(job: TrainJob, lengths: np.ndarray) -> np.ndarray:
    """Segment ids int [rows, S] of packed rows of utterances of these lengths, 0 for padding.

    Raises:
      UserError: none of them fits.
    """
    room = lengths
    if not job.system.layout.packs:  # each takes a row
        room = np.where(lengths <= job.seq_len, job.seq_len, lengths)
    if lengths.min() > job.seq_len:
        raise UserError(
            f"no utterance fits into {job.seq_len} columns: the shortest takes {lengths.min()}",
            "raise TrainJob.seq_len, or plan for shorter utterances with --utterance.",
        )
    times = -(-ROWS * job.seq_len // int(room[room <= job.seq_len].sum()))
    lengths, room = np.tile(lengths, times), np.tile(room, times)
    plan = packing.pack(room, job.seq_len, job.seed)
    segments = np.zeros((len(plan), job.seq_len), np.int32)
    for row in range(len(plan)):
        sizes = lengths[plan.row(row)]
        segments[row, : sizes.sum()] = np.repeat(np.arange(len(sizes)) + 1, sizes)
    return segments
