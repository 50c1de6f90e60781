"""What a run is before it has numbers: mesh, model, abstract state, and the jitted step.

No dataset is opened and no weight computed, so that a plan, a dry run or a compilation for chips
that are not here can have it for a job of any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from slm_jax.data.rows import pack_row, stack
from slm_jax.errors import UserError
from slm_jax.models.speech_lm import SpeechLMConfig, trainable
from slm_jax.nn import tree
from slm_jax.training import best, objective, optimizer, partitioning, step
from slm_jax.training import state as states
from slm_jax.training.job import TrainJob


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What `make` returns; arrays are `jax.ShapeDtypeStruct` with shardings.

    Attributes:
      job: with the backbone's sizes filled in.
      mesh: of the devices.
      build: makes the model with random numbers.
      graphdef: its structure.
      moving: paths of the parameters that the optimizer changes.
      update: the optimizer.
      state: {"params", "opt", "step"}.
      reference: parameters of the KL's frozen LLM; {} where it needs none of its own.
      batch: the global batch.
      objective: the losses.
      step: (state, batch, reference) -> (state, metrics), jitted; the state is donated.
      evaluation: (params, batch, reference) -> {name: (sum, weight)}, jitted.
    """

    job: TrainJob
    mesh: Mesh
    build: Callable[[], nnx.Module]
    graphdef: nnx.GraphDef
    moving: frozenset[str]
    update: Any
    state: states.State
    reference: tree.Params
    batch: dict[str, jax.ShapeDtypeStruct]
    objective: objective.Objective
    step: Any
    evaluation: Any


def make(job: TrainJob, devices: Sequence[jax.Device] | None = None) -> Program:
    """Everything about the step of `job`; nothing is compiled yet.

    Args:
      job: resolved (`TrainJob.resolve`).
      devices: to run on, default all of every process; those of a topology description will do.

    Raises:
      UserError: the mesh does not fit the devices, the batch the mesh, or `Checkpoints.best` the
        losses.
    """
    mesh = make_mesh(job, devices)

    def build() -> nnx.Module:
        return job.system.build(nnx.Rngs(job.seed))

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # whose devices may not be here
        graphdef, params = states.skeleton(build, job.parallel.rules, mesh)
        moves = tree.flatten(trainable(params, job.trains))
        moving = optimizer.moving(job.optimizer, (path for path, on in moves.items() if on))
        update = optimizer.make(job.optimizer, job.steps)
        state = states.abstract_state(params, update, moving, averages=job.optimizer.ema > 0)
        reference = _reference(job, params)
        batch = batch_of(job, mesh)
        aim = objective.make(job, graphdef, params, _padding(job), moving)
        best.check(job.checkpoints.best, jax.eval_shape(aim.weights, batch).keys())
    whole = partitioning.replicated(mesh)
    run_step = jax.jit(
        step.make_step(
            *aim[:3], update, moving, job.accumulate, seed=job.seed, ema=job.optimizer.ema
        ),
        in_shardings=tuple(states.shardings(part) for part in (state, batch, reference)),
        out_shardings=(states.shardings(state), whole),
        donate_argnums=0,
    )
    evaluation = jax.jit(step.make_evaluation(aim.sums, aim.weights), out_shardings=whole)
    return Program(
        job, mesh, build, graphdef, moving, update, state, reference, batch, aim, run_step,
        evaluation,
    )  # fmt: skip


def make_mesh(job: TrainJob, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a job, which its batch divides over.

    Raises:
      UserError: it does not.
    """
    try:
        mesh = partitioning.make_mesh(job.parallel, devices)
    except ValueError as error:
        raise UserError(
            str(error),
            f"Set {', '.join(f'Parallel.{axis}' for axis in partitioning.MESH_AXES)} so that their "
            "product is that number, and Parallel.slices to the number of slices.",
        ) from None
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * job.accumulate
    if job.batch_size % shares:
        raise UserError(
            f"batch_size {job.batch_size} does not divide over data x fsdp x accumulate = {shares}",
            f"make TrainJob.batch_size a multiple of {shares}.",
        )
    if job.seq_len % mesh.shape["context"]:
        raise UserError(
            f"seq_len {job.seq_len} does not divide over context = {mesh.shape['context']}",
            f"make TrainJob.seq_len a multiple of {mesh.shape['context']}.",
        )
    return mesh


def is_lora(path: str) -> bool:
    """Whether a parameter is half of a low-rank update."""
    return path.rpartition("/")[2] in ("lora_a", "lora_b")


def _reference(job: TrainJob, params: tree.Params) -> tree.Params:
    """The KL's frozen LLM; LoRA leaves the model's own weights as they were, which serve then."""
    compares = isinstance(job.system.model, SpeechLMConfig) and job.losses.kl
    if not compares or job.trains == "lora":
        return {}
    flat = tree.flatten(params["backbone"])
    own = {path: leaf for path, leaf in flat.items() if not is_lora(path)}
    return {"backbone": tree.unflatten(own)}


def _padding(job: TrainJob) -> dict[str, Any]:
    """A batch of one row without records: what all batches look like."""
    return stack([pack_row(job.system.layout, job.seq_len, (), None)])


def batch_of(job: TrainJob, mesh: Mesh | AbstractMesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of a step, with shardings."""
    padding = _padding(job)
    placed = partitioning.batch_shardings(padding, mesh)
    return {
        name: jax.ShapeDtypeStruct((job.batch_size, *x.shape[1:]), x.dtype, sharding=placed[name])
        for name, x in padding.items()
    }
