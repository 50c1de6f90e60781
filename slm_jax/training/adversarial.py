"""Training against discriminators, for whatever makes audio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.vocoder import spectral_losses
from slm_jax.training.discriminators import Discriminators, discriminator_loss, generator_losses
from slm_jax.training.fit import FitConfig, fit


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Rates and weights of a stage against discriminators.

    Attributes:
      peak_lr: of the generator; the discriminators' is twice that.
      weight, feature_weight: of the discriminators' losses, the spectral ones have 1.
    """

    peak_lr: float = 2e-4
    weight: float = 0.3
    feature_weight: float = 0.3


def train_adversarially(
    run_dir: Path,
    name: str,
    params: Params,
    pair: Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]],
    batch_at: Callable[[int], Any],
    rate: int,
    adversary: Adversary,
    schedule: FitConfig,
    seed: int,
) -> Params:
    """Generator and discriminators in turns, one step each (LSGAN; `discriminators`).

    Args:
      run_dir, name, schedule, seed: of `fit`.
      params: of the generator.
      pair: (params, batch, key) -> generated and real audio, both [B, n].
      batch_at: the batch of a step.
      rate: samples a second.

    Returns:
      The generator's parameters.
    """
    step, start = make_adversarial_step(pair, rate, adversary, schedule.steps, seed)
    sample, said = batch_at(0), jax.jit(pair)

    def listen(state):
        return np.concatenate(said(state["params"], sample, jax.random.key(0))[0])

    state = start(params)
    return fit(run_dir, name, schedule, state, step, batch_at, seed + 2, listen)["params"]


def make_adversarial_step(
    pair: Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]],
    rate: int,
    adversary: Adversary,
    steps: int,
    seed: int,
) -> tuple[Callable[..., Any], Callable[[Params], dict[str, Any]]]:
    """(state, batch, key) -> (state, losses), jitted, and the state at the generator's
    parameters."""
    graphdef, critics = pure_params(Discriminators(rngs=nnx.Rngs(seed + 1)))
    decay = optax.cosine_decay_schedule(adversary.peak_lr, steps, 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), gan_adamw(decay))
    criticising = optax.chain(optax.clip_by_global_norm(10.0), gan_adamw(lambda s: 2 * decay(s)))

    def generating(params, critics, batch, key):
        fake, real = pair(params, batch, key)
        named = spectral_losses(fake, real, rate)
        judged = generator_losses(merge(graphdef, critics), real, fake)
        total = sum(named.values()) + adversary.weight * judged["adversarial"]
        return total + adversary.feature_weight * judged["features"], (named | judged, fake, real)

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


def gan_adamw(rate: Any) -> optax.GradientTransformation:
    """AdamW with the short memory that GANs want (as in HiFi-GAN)."""
    return optax.adamw(rate, b1=0.8, b2=0.99, weight_decay=0.01)
