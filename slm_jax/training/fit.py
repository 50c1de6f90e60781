"""A small trainer for the tokenizer recipes: one pure step, checkpoints, resume, progress.

The speech LM has the partitioned loop of `slm_jax.training.loop`; vocoders and tokenizers fit one
device, and need no more than this.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from tensorboardX import SummaryWriter

from slm_jax.errors import UserError
from slm_jax.training.distributed import PREEMPTED, Preemption

State = dict[str, Any]
RATE = 16_000


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long a stage runs and how often it speaks and saves."""

    steps: int
    log_every: int = 25
    save_every: int = 100

    def __post_init__(self):
        if min(self.steps, self.log_every, self.save_every) < 1:
            raise ValueError("FitConfig: steps, log_every and save_every must be positive")


def fit(
    run_dir: Path,
    name: str,
    config: FitConfig,
    state: State,
    step_fn: Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]],
    batch_at: Callable[[int], Any],
    seed: int,
    listen: Callable[[State], np.ndarray] | None = None,
    judge: Callable[[State], Mapping[str, float]] | None = None,
) -> State:
    """Runs `state, metrics = step_fn(state, batch, key)` from the newest checkpoint to the end.

    Args:
      run_dir: holds `checkpoints/<name>/`, `tensorboard/<name>/` and `metrics.jsonl`.
      name: of the stage.
      state: initial pytree of arrays; gives structure and shapes on resume.
      step_fn: jitted; metrics are scalars.
      batch_at: the batch of a step; called by several threads, ahead of their use.
      seed: step s draws from fold_in(key(seed), s).
      listen: gives a sample of what the state says, float32 [n] at 16 kHz, for TensorBoard.
      judge: gives held-out losses; like `listen` asked at every checkpoint.

    Returns:
      The state after `config.steps` steps.
    Raises:
      UserError: a loss is not finite; the last checkpoint stays.
      SystemExit: (143) after a SIGTERM; the step before it is saved.
    """
    directory = run_dir / "checkpoints" / name
    policies = ocp.training.preservation_policies
    checkpointer = ocp.training.Checkpointer(
        directory.resolve(), preservation_policy=policies.LatestN(2)
    )
    start = 0
    if checkpointer.latest is not None:
        start = checkpointer.latest.step
        restored = checkpointer.load_checkpointables(None, {"state": jax.eval_shape(lambda: state)})
        state = jax.tree.map(np.asarray, restored["state"])
        print(f"{name}: resuming at step {start} of {config.steps}", flush=True)
    writer = SummaryWriter(str(run_dir / "tensorboard" / name))
    key, sums, logged, began = jax.random.key(seed), {}, start, time.perf_counter()
    with Preemption() as preemption:
        for step, batch in enumerate(_ahead(batch_at, start, config.steps), start):
            state, metrics = step_fn(state, batch, jax.random.fold_in(key, step))
            for label, value in metrics.items():
                sums[label] = sums.get(label, 0.0) + value
            done = step + 1
            stop = preemption.stop()
            save = stop or done % config.save_every == 0 or done == config.steps
            if save or done % config.log_every == 0:  # nothing is saved that was not looked at
                means = {label: float(v) / (done - logged) for label, v in sums.items()}
                rate = (done - logged) / (time.perf_counter() - began)
                eta = f"{rate:.2f} steps/s, ETA {(config.steps - done) / rate / 60:.1f} min"
                print(f"{name} {done}/{config.steps} {_spelled(means)} | {eta}", flush=True)
                speed = {"steps_per_second": round(rate, 3)}
                _log(run_dir, writer, name, done, means, speed)
                if not np.isfinite(sum(means.values())):
                    raise UserError(
                        f"{name}: a loss is not finite at step {done}: {means}",
                        "lower the learning rate; the last checkpoint is intact",
                    )
                sums, logged, began = {}, done, time.perf_counter()
            if save:
                checkpointer.save_checkpointables(done, {"state": state}, overwrite=True)
                if stop:
                    print(f"{name}: stopped by SIGTERM after step {done}, which is saved")
                    raise SystemExit(PREEMPTED)
                if judge is not None:
                    judged = judge(state)
                    print(f"{name} {done}/{config.steps} held out: {_spelled(judged)}", flush=True)
                    judged = {f"held_out/{label}": value for label, value in judged.items()}
                    _log(run_dir, writer, name, done, judged)
                if listen is not None:
                    sample = np.clip(listen(state), -1, 1)
                    writer.add_audio("sample", sample, done, sample_rate=RATE)
    checkpointer.close()
    writer.close()
    return state


def _ahead(batch_at: Callable[[int], Any], start: int, end: int) -> Iterator[Any]:
    """The batches from `start` on, built by threads while the device works on those before."""
    workers = max(1, (os.cpu_count() or 1) // 2)
    with ThreadPoolExecutor(workers) as pool:
        pending: collections.deque = collections.deque()
        for step in range(start, end):
            pending.append(pool.submit(lambda s: jax.device_put(batch_at(s)), step))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _spelled(values: Mapping[str, float]) -> str:
    return " ".join(f"{label} {value:.4f}" for label, value in values.items())


def _log(
    run_dir: Path,
    writer: SummaryWriter,
    name: str,
    step: int,
    values: Mapping[str, float],
    beside: Mapping[str, float] | None = None,
) -> None:
    for label, value in values.items():
        writer.add_scalar(label, value, step)
    line = {"stage": name, "step": step, **(beside or {}), **values}
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
