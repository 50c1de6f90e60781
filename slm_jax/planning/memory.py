"""Bytes that a training step takes on one device, from shapes alone; nothing is compiled.

    parameters   every array's part that lies on the device, by the rules of `Parallel`
    optimizer    the same of its moments, and of the average of the weights if there is one
    gradients    as the parameters that move, in float32; once more where microbatches are added up
    reference    the KL's frozen LLM, where LoRA does not make it the model itself
    copies       of all matrices in the dtype of products, if that is another: a compiler makes them
                 once for all layers and microbatches
    batch        the rows of a step
    activations  the most that is alive beside these forward and backward in one microbatch
                 (`slm_jax.planning.liveness`), in the traced program of one device's share: its
                 rows, its columns (`Parallel.context`), and of the backbone its heads and its part
                 of the MLP (`Parallel.tensor`)

Among what is alive is what the backward pass reads of the forward pass. For a decoder of L layers,
a layer keeps of each column, in bytes of the compute dtype, with width D, query heads H, key heads
K of width h, and MLP width F:

    full       D
    attention  D + 2 (H + K) h
    dots       2 D + (H + 2 K) h + 2 F

`launch/plan.py --aot` asks the compiler; docs/planning.md says how far it is from these.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr
from jax.sharding import AbstractDevice, AbstractMesh

from slm_jax.errors import UserError
from slm_jax.nn import placement, tree
from slm_jax.planning import liveness
from slm_jax.planning.accelerators import Accelerator
from slm_jax.training import partitioning, setup, state, step
from slm_jax.training.job import TrainJob


class Memory(NamedTuple):
    """Bytes on one device."""

    parameters: float
    optimizer: float
    gradients: float
    reference: float
    copies: float
    batch: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def mesh_of(job: TrainJob, accelerator: Accelerator) -> AbstractMesh:
    """The mesh of a job on chips that are not here.

    Raises:
      UserError: they, or the columns of a row, cannot be divided so.
    """
    parallel, chips = job.parallel, accelerator.chips
    if accelerator.platform == "tpu" and parallel.slices != accelerator.slices:
        raise UserError(
            f"Parallel.slices is {parallel.slices}, {accelerator.name} has {accelerator.slices}",
            "add --gin_file=parallel/multislice.gin and set SLICES, or name another accelerator.",
        )
    if job.seq_len % parallel.context:
        raise UserError(
            f"seq_len {job.seq_len} does not divide over context = {parallel.context}",
            f"make TrainJob.seq_len a multiple of {parallel.context}.",
        )
    try:
        sizes = partitioning.abstract_mesh(parallel, chips).axis_sizes
    except ValueError as error:
        raise UserError(
            str(error),
            "set Parallel, or the macros of the file in gin/parallel/, so that the product is "
            "the number of chips and Parallel.data a multiple of Parallel.slices.",
        ) from None
    return _mesh(sizes, AbstractDevice(accelerator.chip.kind, 1, accelerator.platform))


def of(job: TrainJob, mesh: AbstractMesh) -> Memory:
    """Memory of one device of `mesh`.

    Args:
      job: resolved; its batch divides over the mesh.
      mesh: of `mesh_of`.
    """
    alone = setup.make(share_of(job, mesh), jax.devices()[:1])
    return held(job, mesh, alone)._replace(activations=activations(job, mesh, alone))


def held(job: TrainJob, mesh: AbstractMesh, alone: setup.Program) -> Memory:
    """The same without activations, which stand as 0.

    Args:
      job, mesh: as of `of`.
      alone: of the job's share that one device computes.
    """
    params = _placed(job, mesh)
    averages = "ema" in alone.state
    whole = state.abstract_state(params, alone.update, alone.moving, averages)
    moving = step.split(params, alone.moving)[0]
    reference = _reference(params, alone)
    width = jnp.dtype(job.system.model.backbone.dtype).itemsize
    matrices = [leaf for leaf in jax.tree.leaves([params, reference]) if len(leaf.shape) > 1]
    return Memory(
        parameters=on_device(params),
        optimizer=on_device([part for name, part in whole.items() if name != "params"]),
        gradients=on_device(moving) * (1 if job.accumulate == 1 else 2),
        reference=on_device(reference),
        copies=math.fsum(
            on_device(leaf) * width / leaf.dtype.itemsize
            for leaf in matrices
            if leaf.dtype.itemsize != width
        ),
        batch=on_device(setup.batch_of(job, mesh)),
        activations=0.0,
    )


def on_device(abstract: Any) -> float:
    """Bytes of the parts of arrays that lie on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(abstract)
        )
    )


def activations(job: TrainJob, mesh: AbstractMesh, alone: setup.Program) -> float:
    """Bytes that are alive forward and backward in a microbatch, and are not the gradients'.

    Args:
      job, mesh, alone: as of `held`.
    """
    params = _placed(job, mesh)
    moving, held = step.split(params, alone.moving)
    arguments = [_share(x) for x in jax.tree.leaves((moving, held, _reference(params, alone)))]
    device = mesh.abstract_device
    traced = gradient(alone, device)
    arguments += [1.0] * (len(traced.invars) - len(arguments))  # of the batch, which is its own
    results = [_share(x) for x in jax.tree.leaves(moving)]
    return liveness.peak(traced, arguments, results, device.platform) - on_device(moving)


def share_of(job: TrainJob, mesh: AbstractMesh) -> TrainJob:
    """The job that one device computes for one microbatch, as if it were alone."""
    sizes = dict(mesh.shape)
    tensor = sizes["tensor"]
    backbone = job.system.model.backbone
    assert backbone is not None, "a resolved job has a backbone"
    parts = {
        name: getattr(backbone, name) // tensor
        for name in ("heads", "kv_heads", "mlp_width")
        if getattr(backbone, name) % tensor == 0
    }
    rows = job.batch_size // (sizes["data"] * sizes["fsdp"] * job.accumulate)
    alone = dataclasses.replace(
        job,
        parallel=partitioning.Parallel(),
        batch_size=rows,
        seq_len=job.seq_len // sizes["context"],
        accumulate=1,
    )
    return _with_backbone(alone, **parts)


def gradient(program: setup.Program, device: AbstractDevice) -> Jaxpr:
    """(moving and held parameters, reference, batch) -> gradients of what moves, traced.

    Args:
      program: of one device, without microbatches.
      device: for which it is traced: attention is another on another platform.
    """
    moving, held = step.split(program.state["params"], program.moving)
    aim = program.objective

    def backward(moving: tree.Params, held: tree.Params, reference: tree.Params, batch: Any) -> Any:
        def total(moving: tree.Params) -> jax.Array:
            found = aim.sums(step.join(moving, held), reference, batch, jax.random.key(0))
            return sum(found[name] for name in aim.coefficients)

        return jax.grad(total)(moving)

    with jax.sharding.use_abstract_mesh(_mesh((1,) * len(placement.MESH_AXES), device)):
        return jax.make_jaxpr(backward)(moving, held, program.reference, program.batch).jaxpr


def _placed(job: TrainJob, mesh: AbstractMesh) -> tree.Params:
    """The parameters as they lie on the mesh."""

    def build() -> nnx.Module:
        return job.system.build(nnx.Rngs(job.seed))

    return state.skeleton(build, job.parallel.rules, mesh).params


def _reference(params: tree.Params, alone: setup.Program) -> list[jax.ShapeDtypeStruct]:
    flat = tree.flatten(params)
    return [flat[path] for path in tree.flatten(alone.reference)]


def _share(leaf: jax.ShapeDtypeStruct) -> float:
    """How much of an array lies on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) / math.prod(leaf.shape)


def _mesh(sizes: tuple[int, ...], device: AbstractDevice) -> AbstractMesh:
    return AbstractMesh(
        sizes, placement.MESH_AXES, axis_types=partitioning.AUTO, abstract_device=device
    )


def _with_backbone(job: TrainJob, **changed: Any) -> TrainJob:
    model = job.system.model
    backbone = dataclasses.replace(model.backbone, **changed)
    system = dataclasses.replace(job.system, model=dataclasses.replace(model, backbone=backbone))
    return dataclasses.replace(job, system=system)
