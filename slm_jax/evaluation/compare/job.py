"""What launch/compare.py compares, and how: bound by gin/compare.gin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from slm_jax.data.registry import MixtureSpec
from slm_jax.decoding.samplers import Sampling
from slm_jax.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class CompareJob:
    """A comparison of systems on the same shards.

    Attributes:
      name: of the comparison; its folder is `runs`/`name`.
      dataset: trained on ("train") and measured on ("validation" and "test").
      sources: how to build it, `data_pipelines.build_config`.
      systems: files of `folder` without ".gin"; empty for all that have a namesake in gin/systems.
      folder: of their gin files, in gin/.
      operations: that every system may spend in training, as `flops.counted` counts them.
      steps: updates that a system makes, about: the rows of its batches follow.
      max_seconds: longer utterances are not measured, and make no row longer.
      optimizer: of every system.
      prompts: held-out texts that are spoken.
      twins: false twins of each held-out utterance.
      sampling: of speech.
      unit_vocoder: folder of what speaks the units; empty for none.
      taste, asr, pronunciations, text_tokenizer: as in `TrainJob` and `DecodeJob`.
      seed: of everything.
      runs: directory of all runs.
    """

    name: str = "compare"
    dataset: str = "prompts"
    sources: tuple[Any, ...] = ()
    systems: tuple[str, ...] = ()
    folder: str = "systems/tiny"
    operations: float = 5e11
    steps: int = 200
    max_seconds: float = 4.5
    optimizer: Optimizer = Optimizer()
    prompts: int = 6
    twins: int = 4
    sampling: Sampling = Sampling(temperature=0.8)
    unit_vocoder: str = ""
    taste: str = ""
    asr: str = "whisper_tiny_en"
    pronunciations: str = "pronunciations"
    text_tokenizer: str = "smollm2"
    seed: int = 0
    runs: str = "runs"

    def __post_init__(self) -> None:
        for field in ("operations", "steps", "max_seconds", "prompts", "twins"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be above 0, got {getattr(self, field)}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name must be that of a folder, not {self.name!r}")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def data(self) -> MixtureSpec:
        return MixtureSpec(((self.dataset, 1.0),))
