"""The train step of a job, compiled for chips that are not here: does it fit, what does it send?

What the compiler answers is what it will answer on the machine: the memory of each chip, kernels
included, and the collectives. It says nothing about speed.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from typing import Any

import jax
import numpy as np

from slm_jax.errors import UserError
from slm_jax.nn.placement import axes
from slm_jax.planning import accelerators, memory, topologies
from slm_jax.planning.accelerators import Accelerator
from slm_jax.training import setup
from slm_jax.training.chips import GIB
from slm_jax.training.job import TrainJob

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_CALL = re.compile(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_FULL = re.compile(r"(?:Used|\()\s*([\d.]+)([KMGT]?)\b")  # "Used 17.08G of", "(224.00G) exceeds"
_KERNEL = re.compile(
    r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton|__cudnn\$fmha\w+)"'
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(UserError):
    """The step needs more memory than a chip has.

    Attributes:
      needed: bytes, as the compiler says.
    """

    def __init__(self, message: str, remedy: str, needed: float):
        super().__init__(message, remedy)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A train step as the compiler for those chips made it.

    Attributes:
      accelerator: such as "v5e-16".
      chips: of it.
      mesh: sizes of its axes.
      accumulate: microbatches of a step.
      peak, limit: bytes of HBM in use at most, with the program, and those that a chip has.
      arguments: bytes of `peak` that are state and batch.
      collectives: how often each stands in the program; those of a scanned layer stand there once.
      kernels: Pallas kernels in the program, and attention by cuDNN.
      operations: of one step, all chips together, rows full (`slm_jax.training.flops`).
      seconds: that compiling took here.
    """

    accelerator: str
    chips: int
    mesh: dict[str, int]
    accumulate: int
    peak: float
    limit: float
    arguments: float
    collectives: dict[str, int]
    kernels: int
    operations: float
    seconds: float

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1)
        calls = ", ".join(f"{count} {kind}" for kind, count in self.collectives.items())
        return "\n".join(
            (
                f"{self.accelerator}   chips {self.chips}, mesh {mesh or 'of one'}, "
                f"microbatches {self.accumulate}",
                f"peak HBM     {self.peak / GIB:.2f} of {self.limit / GIB:.2f} GiB a chip, "
                f"{self.arguments / GIB:.2f} of it state and batch",
                f"collectives  {calls or 'none'}",
                f"kernels      {self.kernels}",
                f"arithmetic   {self.operations:.3e} operations a step",
                f"compiled in  {self.seconds:.0f} s",
            )
        )


def compile_step(job: TrainJob, name: str) -> Compiled:
    """Compiles the step that `launch/train.py` would run.

    Args:
      job: resolved.
      name: such as "v5e-16", "2xv5e-256" or "h100-8"; of v5p the number is that of cores, two a
        chip.

    Raises:
      TooLarge: the step does not fit into the memory of a chip.
      UserError: no such slice, a mesh or batch that it does not divide, or no compiler for it.
    """
    accelerator = accelerators.parse(name)
    program = setup.make(job, topologies.devices(accelerator))
    began = time.monotonic()
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.state, program.batch, program.reference)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _explained(error, program, accelerator) from None
    found = compiled.memory_analysis()
    # Not the sum of arguments, temporaries and results: what one result leaves another may take.
    peak = found.peak_memory_in_bytes + found.generated_code_size_in_bytes
    if peak > accelerator.chip.memory:  # that for TPUs refuses it itself
        raise _too_large(peak, program, accelerator)
    text = compiled.as_text()
    calls = Counter(_CALL.findall(text))
    return Compiled(
        accelerator=name,
        chips=accelerator.chips,
        mesh=dict(program.mesh.shape),
        accumulate=job.accumulate,
        peak=peak,
        limit=accelerator.chip.memory,
        arguments=found.argument_size_in_bytes,
        collectives=dict(sorted(calls.items())),
        kernels=len(_KERNEL.findall(text)),
        operations=program.objective.work(np.ones((job.batch_size, job.seq_len), int)),
        seconds=time.monotonic() - began,
    )


def smallest(job: TrainJob, kinds: tuple[str, ...] = tuple(topologies.SIZES)) -> Compiled:
    """The first slice, by chips and then by memory, that the job fits on.

    The global batch stays what it is: all devices share the parameters (the mesh is all fsdp but
    for the other axes of `Parallel`), and a microbatch has one row for each of them.

    What cannot fit is not compiled. A device holds its part of state and batch, and at least half
    of the gradients, copies and activations that `slm_jax.planning.memory` counts (the least that
    the compiler has taken of them is in docs/planning.md); once it has refused a slice, what it
    wanted there beside all of these but the activations.

    Args:
      job: resolved, with a rule for "fsdp".
      kinds: of chips to look among.

    Raises:
      UserError: none fits.
    """
    if not any("fsdp" in axes(target) for target in job.parallel.rules.values()):
        raise UserError(
            "no rule divides the parameters, so that more chips do not help",
            "add --gin_file=parallel/fsdp.gin",
        )
    slices = sorted(
        (accelerators.parse(f"{kind}-{size}") for kind in kinds for size in topologies.SIZES[kind]),
        key=lambda one: (one.chips, one.chip.memory),
    )
    alone, beside = None, 0.0
    for accelerator in slices:
        spread = spread_over(job, accelerator.chips)
        if spread is None:
            continue
        mesh = memory.mesh_of(spread, accelerator)
        if alone is None:  # a device's share is the same on all of them
            alone = setup.make(memory.share_of(spread, mesh), jax.devices()[:1])
            beside = memory.activations(spread, mesh, alone) / 2
        held = memory.held(spread, mesh, alone)
        if held.total - (held.gradients + held.copies) / 2 + beside > accelerator.chip.memory:
            continue
        try:
            return compile_step(spread, accelerator.name)
        except TooLarge as error:
            print(f"{accelerator.name}: {error.message}", flush=True)
            beside = max(beside, error.needed - held.total)
    raise UserError(
        f"the job fits on none of {', '.join(one.name for one in slices)}",
        "raise batch_size to a multiple of more chips, lower seq_len, or set remat to full.",
    )


def spread_over(job: TrainJob, chips: int) -> TrainJob | None:
    """The job with its parameters over all chips and a row a microbatch on each, if it divides."""
    parallel = job.parallel
    inner = parallel.tensor * parallel.context
    fsdp = chips // inner
    if chips % inner or job.batch_size % fsdp:
        return None
    spread = dataclasses.replace(parallel, data=1, fsdp=fsdp, slices=1)
    return dataclasses.replace(job, parallel=spread, accumulate=job.batch_size // fsdp)


def to_json(compiled: Compiled, command: str) -> dict[str, Any]:
    """What is committed of a compilation; the seconds are those of a machine, and left out."""
    fields = dataclasses.asdict(compiled)
    return {"command": command} | {name: fields[name] for name in fields if name != "seconds"}


def _explained(
    error: Exception, program: setup.Program, accelerator: Accelerator
) -> TooLarge | Exception:
    """The compiler's complaint about memory in our words; any other as it is."""
    said = _FULL.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or said is None:
        return error
    return _too_large(float(said[1]) * _UNITS[said[2]], program, accelerator)


def _too_large(needed: float, program: setup.Program, accelerator: Accelerator) -> TooLarge:
    limit = accelerator.chip.memory
    return TooLarge(
        f"the step needs {needed / GIB:.1f} GiB of HBM a chip, {accelerator.name} has "
        f"{limit / GIB:.2f}: {(needed - limit) / GIB:.1f} GiB too much",
        f"{'; or '.join(_remedies(program))}.",
        needed,
    )


def _remedies(program: setup.Program) -> list[str]:
    job, mesh = program.job, program.mesh.shape
    rows = job.batch_size // (mesh["data"] * mesh["fsdp"] * job.accumulate)
    backbone = job.system.model.backbone
    found = []
    if mesh["data"] > 1:
        found.append("divide the parameters over more chips (parallel/fsdp.gin, a larger FSDP)")
    if rows > 1:
        found.append(f"raise TrainJob.accumulate by {rows} times: {rows} rows a device are in work")
    if backbone is not None and backbone.remat != "full":
        field = "BackboneConfig" if job.llm is None else "Llm"
        found.append(f'set {field}.remat = "full"')
    return [*found, "take more chips, or chips with more memory"]
