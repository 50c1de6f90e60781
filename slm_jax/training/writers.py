"""Where curves and audio samples of a run go: TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import dataclasses
import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tensorboardX import SummaryWriter

from slm_jax.errors import UserError
from slm_jax.nn import tree


class Clip(NamedTuple):
    """Something to listen to: float samples [n] in [-1, 1] at `rate` Hz, and what is said."""

    name: str
    audio: np.ndarray
    rate: int
    text: str


Listen = Callable[[tree.Params], Sequence[Clip]]  # what the model says with these parameters


class Writer(Protocol):
    """What `metrics.Log` hands lines to."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...
    def clip(self, step: int, clip: Clip) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """RUN/tensorboard; what a killed process wrote after step `start` is hidden."""

    def __init__(self, run_dir: Path, start: int):
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def clip(self, step: int, clip: Clip) -> None:
        self._writer.add_audio(clip.name, clip.audio[:, None], step, sample_rate=clip.rate)
        self._writer.add_text(clip.name, clip.text, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases that later processes of the same run continue.

    What wandb itself reads from its environment holds: WANDB_MODE=offline, WANDB_API_KEY, ...

    Args:
      run_dir: whose files wandb/ and wandb_id are its own.
      project, name: of the run there.
      settings: a dataclass to show as the run's configuration.
    """

    def __init__(self, run_dir: Path, project: str, name: str, settings: Any):
        import wandb

        kept = run_dir / "wandb_id"
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(run_dir),
            config=dataclasses.asdict(settings),
        )
        self._run.define_metric("*", step_metric="step")  # its own counter cannot go back

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def clip(self, step: int, clip: Clip) -> None:
        audio = self._wandb.Audio(clip.audio, sample_rate=clip.rate, caption=clip.text)
        self._run.log({"step": step, clip.name: audio})

    def close(self) -> None:
        self._run.finish()


def open_writers(run_dir: Path, start: int, job: Any) -> list[Writer]:
    """Those that a `TrainJob` asks for, of a run that continues from step `start`."""
    writers: list[Writer] = [TensorBoard(run_dir, start)]
    if job.wandb:
        writers.append(Wandb(run_dir, job.wandb, job.name, job))
    return writers


def check_wandb(project: str) -> None:
    """Raises a UserError if a project is named and the package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"TrainJob.wandb = {project!r}, but the package wandb is not installed",
            'pip install "slm_jax[wandb]", or leave TrainJob.wandb empty.',
        )
