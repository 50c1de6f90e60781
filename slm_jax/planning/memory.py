"""Bytes that a training step takes on one device, from shapes alone; nothing is compiled.

    parameters   every array's part that lies on the device, by the rules of `Parallel`
    optimizer    the same of its moments, and of the average of the weights if there is one
    gradients    as the parameters that move, in float32; once more where microbatches are added up
    reference    the KL's frozen LLM, where LoRA does not make it the model itself
    activations  what the backward pass reads of the forward pass of one microbatch under
                 `Llm.remat`, and of one layer more, which is computed again

Activations are counted in the traced program of one device's share: its rows, its columns
(`Parallel.context`), and of the backbone its heads and its part of the MLP (`Parallel.tensor`).
For a decoder of L layers, a layer keeps of each column, in bytes of the compute dtype, with width
D, query heads H, key heads K of width h, and MLP width F:

    full       D
    attention  D + 2 (H + K) h
    dots       2 D + (H + 2 K) h + 2 F

What is made and dropped within the backward pass of a function (the gradient of the logits) and
what a compiler adds (gathered weights, buffers, fragmentation) is not in it: `launch/plan.py --aot`
asks the compiler.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import Literal
from jax.sharding import AbstractDevice, AbstractMesh

from slm_jax.errors import UserError
from slm_jax.nn import placement, tree
from slm_jax.planning.accelerators import Accelerator
from slm_jax.training import partitioning, setup, state, step
from slm_jax.training.job import TrainJob


class Memory(NamedTuple):
    """Bytes on one device."""

    parameters: float
    optimizer: float
    gradients: float
    reference: float
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
    return held(job, mesh, alone)._replace(activations=activations(alone, mesh.abstract_device))


def held(job: TrainJob, mesh: AbstractMesh, alone: setup.Program) -> Memory:
    """The same without activations, which stand as 0.

    Args:
      job, mesh: as of `of`.
      alone: of the job's share that one device computes.
    """

    def build() -> nnx.Module:
        return job.system.build(nnx.Rngs(job.seed))

    _, params = state.skeleton(build, job.parallel.rules, mesh)
    averages = "ema" in alone.state
    whole = state.abstract_state(params, alone.update, alone.moving, averages)
    moving = step.split(params, alone.moving)[0]
    flat = tree.flatten(params)
    return Memory(
        on_device(params),
        on_device([part for name, part in whole.items() if name != "params"]),
        on_device(moving) * (1 if job.accumulate == 1 else 2),
        on_device([flat[path] for path in tree.flatten(alone.reference)]),
        0.0,
    )


def on_device(abstract: Any) -> float:
    """Bytes of the parts of arrays that lie on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(abstract)
        )
    )


def activations(program: setup.Program, device: AbstractDevice) -> float:
    """Bytes of activations of one microbatch of a program of one device."""
    backbone = program.job.system.model.backbone
    assert backbone is not None, "a resolved job has a backbone"
    saved = kept(program, device)
    if backbone.remat == "none":
        return saved
    without = _with_backbone(program.job, remat="none")
    everything = kept(setup.make(without, [*program.mesh.devices.flat]), device)
    return saved + (everything - saved) / backbone.layers


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


def kept(program: setup.Program, device: AbstractDevice) -> float:
    """Bytes that the backward pass reads of the forward pass, parameters and batch excepted.

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

        return jax.vjp(total, moving)[1]

    with jax.sharding.use_abstract_mesh(_mesh((1,) * len(placement.MESH_AXES), device)):
        traced = jax.make_jaxpr(backward)(moving, held, program.reference, program.batch).jaxpr
    saved = {var for var in traced.outvars if not isinstance(var, Literal)} - {*traced.invars}
    here = [var.aval for var in saved if var.aval.memory_space != jax.memory.Space.Host]
    return float(sum(aval.size * aval.dtype.itemsize for aval in here))


def _mesh(sizes: tuple[int, ...], device: AbstractDevice) -> AbstractMesh:
    return AbstractMesh(
        sizes, placement.MESH_AXES, axis_types=partitioning.AUTO, abstract_device=device
    )


def _with_backbone(job: TrainJob, **changed: Any) -> TrainJob:
    model = job.system.model
    backbone = dataclasses.replace(model.backbone, **changed)
    system = dataclasses.replace(job.system, model=dataclasses.replace(model, backbone=backbone))
    return dataclasses.replace(job, system=system)
