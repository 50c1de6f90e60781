"""A small trainer for the tokenizer recipes: one pure step, checkpoints, resume, progress.

The speech LM has the partitioned loop of `slm_jax.training.loop`; vocoders and tokenizers fit one
device, and need no more than this.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from tensorboardX import SummaryWriter

from slm_jax.errors import UserError

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
    batches: Callable[[int], Iterable[Any]],
    seed: int,
    listen: Callable[[State], np.ndarray] | None = None,
) -> State:
    """Runs `state, metrics = step_fn(state, batch, key)` from the newest checkpoint to the end.

    Args:
      run_dir: holds `checkpoints/<name>/`, `tensorboard/<name>/` and `metrics.jsonl`.
      name: of the stage.
      state: initial pytree of arrays; gives structure and shapes on resume.
      step_fn: jitted; metrics are scalars.
      batches: from a step on, an endless iterator; batch s is a function of s alone.
      seed: step s draws from fold_in(key(seed), s).
      listen: gives a sample of what the state says, float32 [n] at 16 kHz, for TensorBoard.

    Returns:
      The state after `config.steps` steps.
    Raises:
      UserError: a loss is not finite; the last checkpoint stays.
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
    for step, batch in zip(range(start, config.steps), batches(start), strict=False):
        state, metrics = step_fn(state, batch, jax.random.fold_in(key, step))
        for label, value in metrics.items():
            sums[label] = sums.get(label, 0.0) + value
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            means = {label: float(v) / (done - logged) for label, v in sums.items()}
            rate = (done - logged) / (time.perf_counter() - began)
            _log(run_dir, writer, name, done, config.steps, means, rate)
            if not np.isfinite(sum(means.values())):
                raise UserError(
                    f"{name}: a loss is not finite at step {done}: {means}",
                    "lower the learning rate; the last checkpoint is intact",
                )
            sums, logged, began = {}, done, time.perf_counter()
        if done % config.save_every == 0 or done == config.steps:
            checkpointer.save_checkpointables(done, {"state": state}, overwrite=True)
            if listen is not None:
                writer.add_audio("sample", np.clip(listen(state), -1, 1), done, sample_rate=RATE)
    checkpointer.close()
    writer.close()
    return state


def _log(run_dir, writer, name, step, steps, means, rate):
    eta = (steps - step) / rate
    text = " ".join(f"{label} {value:.4f}" for label, value in means.items())
    print(f"{name} {step}/{steps} {text} | {rate:.2f} steps/s, ETA {eta / 60:.1f} min", flush=True)
    for label, value in means.items():
        writer.add_scalar(label, value, step)
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        line = {"stage": name, "step": step, "steps_per_second": round(rate, 3)} | means
        file.write(json.dumps(line) + "\n")
