"""Looks at each step's metrics: logs them, shows them, and stops at a loss that is no number."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from slm_jax.data.loader import Loader
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import bad_batch, flops, goodput, metrics, optimizer
from slm_jax.training.progress import ProgressLine
from slm_jax.training.setup import Program


class Watch:
    """Of one run.

    Args:
      program: the run.
      loader, rows: its training data, and the rows of a batch that this process makes.
      log, progress: where to write.
      spent: the account of the run's time.
    """

    def __init__(
        self,
        program: Program,
        loader: Loader,
        rows: np.ndarray,
        log: metrics.Log,
        progress: ProgressLine,
        spent: goodput.Goodput,
    ):
        job = program.job
        self.job, self.loader, self.rows, self.work = job, loader, rows, program.objective.work
        self.log, self.progress, self.spent = log, progress, spent
        self.devices = program.mesh.size
        self.peak = flops.peak(program.mesh.devices.flat[0].device_kind)
        self.rates = np.asarray(optimizer.schedule(job.optimizer, job.steps)(np.arange(job.steps)))
        self.began = time.monotonic()

    def trained(self, entry: tuple[int, Any] | None) -> None:
        """A step's metrics, the segments of its batch, and the wait for it; on the host."""
        if entry is None:
            return
        at, (measured, segment_ids, waited) = entry
        losses = metrics.means(measured["losses"])
        if not measured["finite"]:
            self._refuse(at, losses)
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        share = self.job.batch_size / len(self.rows)  # of the batch that other processes hold
        rate = float((segment_ids > 0).sum() * share / seconds)
        due = at % self.job.log_every == 0 or at == self.job.steps
        if due:
            work = self.work(segment_ids) * share
            left_out = int(measured.get("skipped", 0))  # the schedule does not count these
            numbers = {
                "tokens_per_second": rate,
                "seconds": seconds,
                "data_wait": waited,
                "tflops_per_device": work / seconds / self.devices / 1e12,
                "grad_norm": float(measured["grad_norm"]),
                "learning_rate": float(self.rates[at - 1 - left_out]),
                "batch": f"{int(measured['digest']):08x}",
            }
            if "skipped" in measured:
                numbers["skipped"] = left_out
            if self.peak:
                numbers["mfu"] = work / seconds / self.devices / self.peak
            self.log.write(at, "train", losses | {"total": float(measured["objective"])}, **numbers)
            self.account(at)
        self.progress.update(at, losses, rate, due)

    def evaluated(self, at: int, losses: Mapping[str, float]) -> None:
        """Means over the held-out data."""
        self.log.write(at, "eval", losses)
        named = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.progress.say(f"held out after step {at}: {named}")

    def goes_on(self) -> None:
        """Begins the time of the next step, after what is not a step's."""
        self.began = time.monotonic()

    def account(self, at: int) -> None:
        """Where the time went until now."""
        self.log.write(at, goodput.SPLIT, {}, **self.spent.numbers())

    def _refuse(self, at: int, losses: Mapping[str, float]) -> None:
        path = bad_batch.save(self.job.run_dir, self.loader, self.rows, at, losses)
        named = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        raise UserError(
            f"the loss or its gradient is not finite at step {at} ({named}); "
            f"batch saved in {path}, where it comes from in {path.with_suffix('.json').name}",
            "lower Optimizer.learning_rate or Optimizer.clip_norm and run the same command again: "
            "it continues from the newest checkpoint, or the one before if you move that away.",
        )


def greeting(program: Program, loader: Loader, start: int) -> str:
    """What a run says when it begins."""
    job, mesh, params = program.job, program.mesh, program.state["params"]
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in tree.flatten(params).items()}
    trained = sum(size for path, size in sizes.items() if path in program.moving)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [
        f"run {job.run_dir}: step {start} of {job.steps}" + (", continued" if start else ""),
        f"model: {sum(sizes.values()) / 1e6:.1f}M parameters, {trained / 1e6:.1f}M trained; "
        f"mesh: {shape} on {mesh.devices.flat[0].device_kind}",
    ]
    for name, part in loader.summary().items():
        lines.append(
            f"data: {name}, {part['rate']:.0%} of the rows: {part['records']} records in "
            f"{part['rows']} rows, {part['fill']:.0%} filled, {part['skipped']} too long"
        )
    return "\n".join(lines)
