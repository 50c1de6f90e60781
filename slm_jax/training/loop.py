"""The training loop, top to bottom: program, data, state, and then the steps.

A run directory holds checkpoints/, config.gin (the resolved job), metrics.jsonl and tensorboard/.
The same command on the same directory continues from the newest checkpoint. Batch s is a function
of (seed, s), so that is all there is to continue from.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from slm_jax.nn import tree
from slm_jax.training import best, metrics, partitioning, provenance, run_folder, setup, weights
from slm_jax.training.checkpoint import Store
from slm_jax.training.distributed import Preemption, is_main
from slm_jax.training.goodput import Goodput
from slm_jax.training.held_out import HeldOut
from slm_jax.training.job import TrainJob
from slm_jax.training.profile import Profile
from slm_jax.training.progress import ProgressLine
from slm_jax.training.state import averaged
from slm_jax.training.watch import Watch, greeting
from slm_jax.training.writers import Listen, check_wandb, open_writers


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` returns.

    Attributes:
      job: with the backbone's sizes filled in.
      graphdef, params: the model, `tree.merge(graphdef, params)`.
      step: updates done, by this call and those before.
      trained: updates done by this call; 0 for a run that was complete.
      finished: False after a SIGTERM.
    """

    job: TrainJob
    graphdef: nnx.GraphDef
    params: tree.Params
    step: int
    trained: int
    finished: bool = True


def train(
    job: TrainJob,
    llm: Path | None = None,
    codebooks: np.ndarray | None = None,
    *,
    profile_steps: range = range(0),
    listen: Listen | None = None,
) -> Outcome:
    """Runs or continues `job`.

    Args:
      job: what to do.
      llm: where the text LLM of `job.llm` lies.
      codebooks: the speech tokenizer's code vectors [K, V, L], for the continuous head.
      profile_steps: steps to trace; the first update is step 1.
      listen: what the model says, to be kept at each evaluation.

    Raises:
      UserError: data or a checkpoint that do not fit the job, a full disk, a loss that is not
        finite, another job in the same directory. The checkpoints written before stay.
    """
    goodput = Goodput()
    job = job.resolve(llm)
    run_dir = job.run_dir
    check_wandb(job.wandb)

    # ---- Program --------------------------------------------------------------------------------
    program = setup.make(job)
    mesh = program.mesh
    rows = partitioning.local_rows(mesh, job.batch_size)

    with (
        run_folder.held(run_dir),
        jax.set_mesh(mesh),
        Preemption() as preemption,
        Store(run_dir, job.checkpoints) as store,
        Profile(run_dir, profile_steps) as profile,
    ):
        # ---- Data -------------------------------------------------------------------------------
        about = provenance.describe(job)
        loader, validation = job.loader("train"), job.loader("validation")

        # ---- State: the newest checkpoint, else the text LLM and random numbers ------------------
        if store.latest is not None:
            provenance.check_continues(job, about, store)
            now = store.restore(program.state)
        else:
            now = weights.initial(program, llm, codebooks)
        start = int(now["step"])
        if is_main():
            provenance.write_config(run_dir, about)
        if start >= job.steps:
            return Outcome(job, program.graphdef, averaged(now), start, 0)
        reference = weights.reference(program, llm)

        # ---- Steps: the host runs one ahead of the device, and reads nothing else of it ----------
        measure = HeldOut(program, validation, reference)
        batches = loader.iterate(start, job.steps, rows)
        deferred = metrics.Deferred()
        goodput.resume(metrics.read(run_dir / metrics.FILE), start)
        writers = open_writers(run_dir, start, job) if is_main() else ()
        log = metrics.Log(run_dir, start, writers)
        done = start
        progress = ProgressLine(job.steps, start, quiet=not is_main())
        watch = Watch(program, loader, rows, log, progress, goodput)
        goodput.started()
        watch.account(start)
        with progress, contextlib.closing(batches), jax.transfer_guard("disallow"):
            progress.say(greeting(program, loader, start))
            if profile_steps and not profile.within(start, job.steps):
                progress.say(f"no trace: --profile_steps has none of {start + 1} to {job.steps}")
            while done < job.steps:
                with goodput.spend("data") as wait:
                    batch = next(batches)
                    placed = partitioning.put_batch(batch, mesh, job.batch_size)
                first = done == start  # the first call compiles
                with goodput.spend("profile"):
                    named = profile.before(done + 1)
                with goodput.spend("compile" if first else "step"), named:
                    if first:
                        preemption.compile(
                            (program.step, now, placed, reference),
                            (program.evaluation, averaged(now), placed, reference),
                        )
                    now, measured = program.step(now, placed, reference)
                    entry = (measured, batch["segment_ids"], wait.seconds)
                    previous = deferred.push(done + 1, entry)
                    if first:
                        jax.block_until_ready(measured)
                done += 1
                with goodput.spend("profile"):
                    profile.after(done, measured)
                watch.trained(previous)
                stop, last = preemption.stop(), done == job.steps
                due = last or done % job.eval_every == 0
                losses = None
                pauses = due or stop or store.due(done)
                if pauses:  # a step that failed is neither measured nor saved
                    with goodput.spend("step"):  # that is still running
                        previous = deferred.flush()
                    watch.trained(previous)
                if due and not stop:
                    with goodput.spend("eval"):
                        losses = measure(averaged(now), preemption.stop)
                        stop = losses is None
                        if not stop:
                            watch.evaluated(done, losses)
                        if not stop and listen is not None:
                            with jax.transfer_guard("allow"):
                                log.hear(done, listen(averaged(now)))
                with goodput.spend("save"), jax.transfer_guard("allow"):
                    scores = losses and best.scores(losses, program.objective.coefficients)
                    store.save(now, done, about, force=stop or last, held_out=scores)
                if pauses:
                    watch.goes_on()
                if stop:
                    progress.say(f"stopped by SIGTERM after step {done}, which is saved")
                    break
            with goodput.spend("save"):
                store.wait()
            watch.account(done)
            progress.say(goodput.describe())
        log.close()
    return Outcome(job, program.graphdef, averaged(now), done, done - start, finished=not stop)
