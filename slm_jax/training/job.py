"""What a training run is: the root of a gin file for launch/train.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from slm_jax.data.ahead import Reading
from slm_jax.data.loader import Loader
from slm_jax.data.registry import MixtureSpec
from slm_jax.errors import UserError
from slm_jax.interop.llm import llm_config
from slm_jax.models.grid_config import GridLMConfig
from slm_jax.models.speech_lm import SpeechLMConfig
from slm_jax.models.system import System
from slm_jax.nn.remat import Remat
from slm_jax.training.checkpoint import Checkpoints
from slm_jax.training.losses import LossWeights
from slm_jax.training.optimizer import Optimizer
from slm_jax.training.partitioning import Parallel

# What a run is made of: to go on with another value would be another run.
IDENTITY = ("system", "data", "batch_size", "seq_len", "seed")
# Fields of any part of it that change no number.
FREE = ("remat",)
# Fields of the backbone that its weights do not settle; they come from `Llm`.
BACKBONE_SETTINGS = ("lora_rank", "lora_alpha", "dtype", "dropout", "remat")


@dataclasses.dataclass(frozen=True)
class Llm:
    """The text LLM that the backbone starts from, and how much of it moves.

    Attributes:
      path: a GGUF file, a folder with safetensors, or "smollm2" (fetched).
      lora_rank: rank of the update on every projection, the LLM's own weights held still; 0 trains
        them all.
      lora_alpha, dtype, dropout, remat: as in `BackboneConfig`.
    """

    path: str = "smollm2"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """One run.

    Attributes:
      name: of the run; its directory is `runs`/`name`.
      system: layout and model; without a backbone of its own, it has that of `llm`.
      data: the mixture; its "train" splits are trained on, "validation" measures.
      sources: how to build the datasets of `data` (`data_pipelines.build_config`), for launchers
        that fill in what is missing; the trainer itself opens what is there.
      llm: where the backbone's weights come from; None for random ones.
      text_tokenizer: that made the text ids: a name that data_pipelines.fetch knows, or a path.
      taste: folder of the TASTE tokenizer that made the speech ids; empty for the starter weights.
      losses: how they are weighed and regularised.
      optimizer, parallel, checkpoints, reading: see there.
      steps: updates in all; raise it to train a finished run further.
      batch_size: rows of the global batch.
      seq_len: columns of a row; longer utterances are left out and counted.
      accumulate: microbatches that a device's rows are cut into.
      seed: of weights, packing, order.
      log_every: steps between two lines of metrics.jsonl.
      eval_every: steps between two measurements on held-out data; the last step measures, too.
      listen: held-out prompts that are continued aloud at each of these, for TensorBoard.
      wandb: project of Weights & Biases that has the curves, too; empty for none.
      prompts: held-out prompts that a finished run continues aloud for its report; 0 leaves the
        measuring to launch/evaluate.py.
      runs: directory of all runs.
    """

    name: str
    system: System
    data: MixtureSpec
    sources: tuple[Any, ...] = ()
    llm: Llm | None = None
    text_tokenizer: str = "smollm2"
    taste: str = ""
    losses: LossWeights = LossWeights()
    optimizer: Optimizer = Optimizer()
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    reading: Reading = Reading()
    steps: int = 100
    batch_size: int = 8
    seq_len: int = 256
    accumulate: int = 1
    seed: int = 0
    log_every: int = 1
    eval_every: int = 50
    listen: int = 0
    wandb: str = ""
    prompts: int = 20
    runs: str = "runs"

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "seq_len", "accumulate", "log_every", "eval_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "listen", "prompts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(
                f"name must not be empty, hold a slash or start with a dot: {self.name!r}"
            )
        if self.checkpoints.best and self.checkpoints.every % self.eval_every:
            raise ValueError(
                f"eval_every {self.eval_every} must divide Checkpoints.every, "
                f"{self.checkpoints.every}, for Checkpoints.best: what is saved is to be measured"
            )
        if self.llm is None and self.system.model.backbone is None:
            raise ValueError("llm must be set where the system's model has no backbone")
        model = self.system.model
        if isinstance(model, SpeechLMConfig):
            self.losses.coefficients(len(model.codebooks), model.head == "continuous")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def trains(self) -> Literal["full", "lora", "frozen"]:
        """What of the backbone moves."""
        model, backbone = self.system.model, self.system.model.backbone
        if isinstance(model, GridLMConfig) and model.freezes:
            return "frozen"
        return "lora" if backbone is not None and backbone.lora_rank else "full"

    def loader(self, split: str, cache: Path | None = None) -> Loader:
        """Its batches of a split ("train", "validation") of the datasets.

        Args:
          split: of each dataset.
          cache: folder for packing plans, as of `Loader`.

        Raises:
          UserError: a dataset is missing, damaged, or does not fit the layout.
        """
        sizes = (self.batch_size, self.seq_len, self.seed)
        data = self.data, self.system.layout
        return Loader(*data, *sizes, split=split, cache=cache, reading=self.reading)

    def resolve(self, llm: Path | None) -> TrainJob:
        """The same job with the backbone's sizes filled in from the text LLM at `llm`.

        Raises:
          UserError: the text LLM cannot be read, or does not fit the layout.
        """
        if self.llm is None or llm is None:
            return self
        settings = {name: getattr(self.llm, name) for name in BACKBONE_SETTINGS}
        backbone = dataclasses.replace(llm_config(llm), **settings)
        model = self.system.model.with_backbone(backbone, self.system.layout)
        backbone, stated = model.backbone, self.system.model.backbone
        if stated is not None and dataclasses.replace(stated, **settings) != backbone:
            differ = [
                f"{field.name} {getattr(stated, field.name)}, there {getattr(backbone, field.name)}"
                for field in dataclasses.fields(backbone)
                if field.name not in settings
                and getattr(stated, field.name) != getattr(backbone, field.name)
            ]
            raise UserError(
                f"the text LLM {llm} is not the one that BackboneConfig describes: "
                f"{'; '.join(differ)}",
                "Leave BackboneConfig out, to take the sizes of the LLM, or give its weights.",
            )
        return dataclasses.replace(self, system=System(self.system.layout, model))

    def check_continues(self, before: TrainJob) -> None:
        """Raises a UserError if `self` is no continuation of the run that `before` began."""
        changed = [
            change
            for name in IDENTITY
            for change in _changes(name, getattr(before, name), getattr(self, name))
        ]
        if changed:
            raise UserError(
                f"the run in {self.run_dir} was begun with other settings: {'; '.join(changed)}",
                "train under another name (--gin.TrainJob.name=...), or restore the settings.",
            )


def _changes(name: str, before: Any, now: Any) -> list[str]:
    """Which fields of two values differ, each as deep down as can be said."""
    if isinstance(now, tuple) and isinstance(before, tuple) and len(before) == len(now):
        pairs = zip(before, now, strict=True)
        parts = {f"{name}[{place}]": pair for place, pair in enumerate(pairs)}
    elif dataclasses.is_dataclass(now) and type(before) is type(now):
        names = [field.name for field in dataclasses.fields(now) if field.name not in FREE]
        parts = {f"{name}.{own}": (getattr(before, own), getattr(now, own)) for own in names}
    else:
        return [] if before == now else [f"{name} was {before}, now {now}"]
    return [change for part, pair in parts.items() for change in _changes(part, *pair)]
