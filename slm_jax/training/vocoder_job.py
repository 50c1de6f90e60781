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
from slm_jax.training.discriminators import Discriminators, discriminator_loss, generator_losses
from slm_jax.training.fit import FitConfig, fit


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """Optimisation of the vocoder.

    Attributes:
      fit, adversarial: the two stages.
      batch: segments a step.
      frames: mel frames of one segment.
      peak_lr: of the first stage.
      adversarial_lr: of generator and discriminators in the second.
      adversarial_weight, feature_weight: of the discriminators' losses, the spectral ones have 1.
    """

    fit: FitConfig = FitConfig(steps=1500)
    adversarial: FitConfig = FitConfig(steps=1500)
    batch: int = 8
    frames: int = 50
    peak_lr: float = 1e-3
    adversarial_lr: float = 2e-4
    adversarial_weight: float = 0.3
    feature_weight: float = 0.3
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
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), _adamw(schedule))

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
        run_dir, "adversarial", state["params"], pair, batch_at, model, config, config.adversarial
    )


def train_adversarially(
    run_dir: Path,
    name: str,
    params: Params,
    pair: Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]],
    batch_at: Callable[[int], Any],
    model: VocoderConfig,
    config: VocoderTraining,
    schedule: FitConfig,
) -> Params:
    """Generator and discriminators in turns, one step each (LSGAN; `discriminators`).

    Args:
      pair: (params, batch, key) -> generated and real audio, both [B, n].
      batch_at: the batch of a step.

    Returns:
      The generator's parameters.
    """
    step, start = make_adversarial_step(pair, model, config, schedule.steps)
    sample, said = batch_at(0), jax.jit(pair)

    def listen(state):
        return np.concatenate(said(state["params"], sample, jax.random.key(0))[0])

    state = start(params)
    return fit(run_dir, name, schedule, state, step, batch_at, config.seed + 2, listen)["params"]


def make_adversarial_step(
    pair: Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]],
    model: VocoderConfig,
    config: VocoderTraining,
    steps: int,
) -> tuple[Callable[..., Any], Callable[[Params], dict[str, Any]]]:
    """(state, batch, key) -> (state, losses), jitted, and the state at the generator's
    parameters."""
    graphdef, critics = pure_params(Discriminators(rngs=nnx.Rngs(config.seed + 1)))
    rate = optax.cosine_decay_schedule(config.adversarial_lr, steps, 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), _adamw(rate))
    criticising = optax.chain(optax.clip_by_global_norm(10.0), _adamw(lambda s: 2 * rate(s)))

    def generating(params, critics, batch, key):
        fake, real = pair(params, batch, key)
        named = spectral_losses(fake, real, model.mel.rate)
        judged = generator_losses(merge(graphdef, critics), real, fake)
        total = sum(named.values()) + config.adversarial_weight * judged["adversarial"]
        return total + config.feature_weight * judged["features"], (named | judged, fake, real)

    def judging(critics, real, fake):
        return discriminator_loss(merge(graphdef, critics), real, fake)

    @jax.jit
    def step(state, batch, key):
        grads, (named, fake, real) = jax.grad(generating, has_aux=True)(
            state["params"], state["critics"], batch, key
        )
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        fake = jax.lax.stop_gradient(fake)
        lost, harsh = jax.value_and_grad(judging)(state["critics"], real, fake)
        moved, critic_opt = criticising.update(harsh, state["critic_opt"], state["critics"])
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt,
            "critics": optax.apply_updates(state["critics"], moved),
            "critic_opt": critic_opt,
        }
        return new, named | {"discriminator": lost}

    def start(params: Params) -> dict[str, Any]:
        return {
            "params": params,
            "opt": optimizer.init(params),
            "critics": critics,
            "critic_opt": criticising.init(critics),
        }

    return step, start


def _adamw(rate: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=0.8, b2=0.99, weight_decay=0.01)
