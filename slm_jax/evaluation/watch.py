"""Measures the checkpoints of a run while it trains, in a process of its own."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.training import checkpoint, metrics, provenance, setup, weights
from slm_jax.training.held_out import HeldOut
from slm_jax.training.job import TrainJob
from slm_jax.training.partitioning import Parallel
from slm_jax.training.writers import TensorBoard

FOLDER = "held_out"  # RUN/held_out has a metrics.jsonl and a tensorboard/ of its own


def watch(run: Path, locate: Callable[[str], Path], poll: float = 10.0) -> None:
    """Measures every checkpoint once, oldest first, and returns when the last one has been.

    What is measured is what the loop measures (`HeldOut`). A checkpoint that is removed before or
    while it is read is left out, one that cannot be read twice likewise; both are said.

    Args:
      run: the run's directory; it may be empty yet.
      locate: finds the text LLM of the job, which a loss may compare with.
      poll: seconds between two looks.
    """
    if not (run / provenance.CONFIG).exists():
        print(f"{run} has no {provenance.CONFIG} yet: waiting for the run to begin", flush=True)
        while not (run / provenance.CONFIG).exists():
            time.sleep(poll)
    job = _job(run)
    program = setup.make(*_alone(job))
    with jax.set_mesh(program.mesh):
        llm = locate(job.llm.path) if program.reference and job.llm else None
        measure = HeldOut(program, job.loader("validation"), weights.reference(program, llm))
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        done = {line["step"] for line in metrics.read(folder / metrics.FILE)}
        start = max(done, default=0)
        log = metrics.Log(folder, start, [TensorBoard(folder, start)])
        failed: set[int] = set()
        while True:
            for step in _left(run, done):
                place = run / checkpoint.DIRECTORY / str(step)
                try:
                    loaded = checkpoint.load_params(place, program.state["params"])
                except UserError as error:
                    if place.exists() and step not in failed:
                        failed.add(step)  # it may be about to be removed: look again
                        continue
                    print(f"step {step} is left out: {error.message}", flush=True)
                else:
                    losses = measure(loaded.params)
                    log.write(step, "eval", losses)
                    named = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
                    print(f"held out after step {step}: {named}", flush=True)
                    del loaded  # before the next one is read
                done.add(step)
            if max(done, default=0) >= _job(run).steps and not _left(run, done):
                break
            time.sleep(poll)
        log.close()


def _left(run: Path, done: set[int]) -> list[int]:
    return [step for step in checkpoint.steps_in(run / checkpoint.DIRECTORY) if step not in done]


def _job(run: Path) -> TrainJob:
    return config.load([run / provenance.CONFIG])


def _alone(job: TrainJob) -> tuple[TrainJob, list[jax.Device]]:
    """The job on as many devices of this process as divide the batch, each with its own rows."""
    count = math.gcd(jax.device_count(), job.batch_size)
    parallel = Parallel(fsdp=count, rules=job.parallel.rules)
    return dataclasses.replace(job, parallel=parallel, accumulate=1), jax.devices()[:count]
