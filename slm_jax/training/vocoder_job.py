"""The vocoder's recipe: spectral losses first, then discriminators beside them.

Two stages on segments of real and synthesised speech. Later, `taste_job.adapt_vocoder` repeats the
second on mels and pitch as the decoder makes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from slm_jax.audio.features import log_envelope
from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.vocoder import Vocoder, VocoderConfig, spectral_losses
from slm_jax.training.adversarial import Adversary, gan_adamw, train_adversarially
from slm_jax.training.fit import FitConfig, fit


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """Optimisation of the vocoder.

    Attributes:
      fit, adversarial: the two stages.
      batch: segments a step.
      frames: mel frames of one segment.
      peak_lr: of the first stage.
      adversary: of the second.
    """

    fit: FitConfig = FitConfig(steps=1500)
    adversarial: FitConfig = FitConfig(steps=1500)
    batch: int = 8
    frames: int = 50
    peak_lr: float = 1e-3
    adversary: Adversary = Adversary()
    seed: int = 0


class Voiced(NamedTuple):
    """An utterance for the vocoder: float [n] samples, Hz [T] and voicing [T] of its frames."""

    audio: np.ndarray
    hertz: np.ndarray
    voiced: np.ndarray


def segments(
    utterances: Sequence[Voiced], config: VocoderTraining, hop: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """The batch of a step, a function of (seed, step): {"audio" [B, frames * hop], "hertz",
    "voiced" [B, frames + 1]} at random gains."""
    weights = np.array([len(u.audio) for u in utterances], np.float64)
    weights /= weights.sum()

    def batch_at(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.choice(len(utterances), config.batch, p=weights)
        cut = [_segment(utterances[i], config.frames, hop, rng) for i in rows]
        return {name: np.stack([one[name] for one in cut]) for name in cut[0]}

    return batch_at


def _segment(one: Voiced, frames: int, hop: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    at = int(rng.integers(0, max(1, len(one.hertz) - frames)))
    audio = one.audio[at * hop : (at + frames) * hop].astype(np.float32)
    audio = np.pad(audio, (0, frames * hop - len(audio))) * rng.uniform(0.4, 1.4)
    shown = slice(at, at + frames + 1)
    short = (0, max(0, at + frames + 1 - len(one.hertz)))
    return {
        "audio": audio.astype(np.float32),
        "hertz": np.pad(one.hertz[shown], short, constant_values=100.0).astype(np.float32),
        "voiced": np.pad(one.voiced[shown], short).astype(np.float32),
    }


def train_vocoder(
    run_dir: Path, utterances: Sequence[Voiced], model: VocoderConfig, config: VocoderTraining
) -> Params:
    """Trains (or resumes) both stages on mono audio and returns the parameters."""
    graphdef, params = pure_params(Vocoder(model, rngs=nnx.Rngs(config.seed)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, min(50, config.fit.steps // 10), config.fit.steps, 0.1 * config.peak_lr
    )
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), gan_adamw(schedule))

    def speak(params, batch):
        mel = log_envelope(batch["audio"], batch["hertz"], model.mel)
        return merge(graphdef, params)(mel, batch["hertz"], batch["voiced"])

    def loss(params, batch):
        losses = spectral_losses(speak(params, batch), batch["audio"], model.mel.rate)
        return sum(losses.values()), losses

    @jax.jit
    def step(state, batch, key):
        del key
        grads, losses = jax.grad(loss, has_aux=True)(state["params"], batch)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, losses

    batch_at = segments(utterances, config, model.mel.hop)
    sample, said = batch_at(0), jax.jit(speak)

    def listen(state):
        return np.concatenate(said(state["params"], sample))

    state: dict[str, Any] = {"params": params, "opt": optimizer.init(params)}
    state = fit(run_dir, "vocoder", config.fit, state, step, batch_at, config.seed, listen)

    def pair(params, batch, key):
        del key
        return speak(params, batch), batch["audio"]

    return train_adversarially(
        run_dir,
        "adversarial",
        state["params"],
        pair,
        batch_at,
        model.mel.rate,
        config.adversary,
        config.adversarial,
        config.seed,
    )
