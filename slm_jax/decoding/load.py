"""A checkpoint, ready to speak."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.decoding.continuation import Continuer
from slm_jax.decoding.engine import Engine
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.errors import UserError
from slm_jax.layouts import Layout
from slm_jax.models.speech_lm import SpeechLM
from slm_jax.nn import lora
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training import checkpoint
from slm_jax.training.job import TrainJob


class Trained(NamedTuple):
    """What `load_model` returns.

    Attributes:
      model: LoRA merged; in f32 on CPU, where XLA would rebuild f32 weights at every step, else as
        trained.
      job: that trained it.
      step: updates done.
      streams: family -> fingerprint of each stream that it was trained on.
    """

    model: SpeechLM
    job: TrainJob
    step: int
    streams: dict[str, str]


def load_model(path: str | Path, average: bool = True) -> Trained:
    """Reads a checkpoint: a run, its checkpoints folder, or one step.

    Args:
      path: of it.
      average: takes the average of the weights where the run kept one (`Optimizer.ema`).

    Raises:
      UserError: there is none, or it is damaged.
    """
    loaded = checkpoint.load_params(path, average=average)
    config, params = loaded.job.system.model, loaded.params
    if jax.default_backend() == "cpu":
        backbone = dataclasses.replace(config.backbone, dtype="float32")
        config = dataclasses.replace(config, backbone=backbone)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if config.backbone.lora_rank:
        params = lora.merged(params, config.backbone.lora_alpha, config.backbone.lora_rank)
        plain = dataclasses.replace(config.backbone, lora_rank=0)
        config = dataclasses.replace(config, backbone=plain)
    graphdef, _ = pure_params(nnx.eval_shape(lambda: SpeechLM(config, nnx.Rngs(0))))
    return Trained(merge(graphdef, params), loaded.job, loaded.step, loaded.streams)


def check_taste(trained: Trained, taste: Taste) -> None:
    """Raises a UserError if the model was trained on the codes of another tokenizer."""
    layout = trained.job.system.layout
    family = layout.families[1]
    vocab = tuple(row.classes for row in layout.rows[1:])
    known = trained.streams.get(family, taste.spec.fingerprint)
    if (vocab, known) != (taste.spec.vocab, taste.spec.fingerprint):
        raise UserError(
            f"the checkpoint was trained on {family!r} codes of sizes {vocab} and fingerprint "
            f"{known}; the speech tokenizer makes {taste.spec.vocab}, {taste.spec.fingerprint}",
            "give the tokenizer that made the training data: --gin.DecodeJob.taste=FOLDER",
        )


def make_continuer(
    model: SpeechLM, layout: Layout, tokenizer: TextTokenizer, taste: Taste, job: DecodeJob
) -> Continuer:
    """The model under the samplers and limits of `job`."""
    engine = Engine(
        model,
        layout,
        Vocabulary.of(tokenizer, layout),
        text=job.text,
        speech=job.speech,
        limits=job.limits,
    )
    return Continuer(engine, tokenizer, taste, job.language)
