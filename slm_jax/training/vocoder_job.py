"""The vocoder's recipe: random segments of real and synthesised speech, spectral losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from slm_jax.audio.features import log_mel
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.vocoder import Vocoder, VocoderConfig, spectral_losses
from slm_jax.training.fit import FitConfig, fit


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """Optimisation of the vocoder.

    Attributes:
      segment: samples of one training segment (a multiple of the hop).
      augment: probability that a segment is resampled to another speed and pitch.
    """

    fit: FitConfig = FitConfig(steps=2000)
    batch: int = 16
    segment: int = 12_800
    peak_lr: float = 1e-3
    augment: float = 0.3
    seed: int = 0


def segments(
    audios: Sequence[np.ndarray], config: VocoderTraining, start: int
) -> Iterator[np.ndarray]:
    """Endless [batch, segment] float32 with random gain; batch s is a function of (seed, s)."""
    weights = np.array([len(a) for a in audios], np.float64)
    weights /= weights.sum()
    step = start
    while True:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.choice(len(audios), config.batch, p=weights)
        yield np.stack([_segment(audios[i], config, rng) for i in rows])
        step += 1


def _segment(audio: np.ndarray, config: VocoderTraining, rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(0.85, 1.2) if rng.random() < config.augment else 1.0
    needed = int(config.segment * speed) + 2
    begin = int(rng.integers(0, max(1, len(audio) - needed)))
    piece = audio[begin : begin + needed]
    piece = np.pad(piece, (0, needed - len(piece)))
    if speed != 1.0:
        # Linear interpolation is enough here: the target is whatever comes out, not the original.
        piece = np.interp(np.arange(config.segment) * speed, np.arange(needed), piece)
    return (piece[: config.segment] * rng.uniform(0.3, 1.3)).astype(np.float32)


def make_step(graphdef, optimizer, config: VocoderConfig):
    """(state, audio [B, n], key) -> (state, losses), jitted."""

    def loss(params, audio):
        predicted = merge(graphdef, params)(log_mel(audio, config.mel))
        losses = spectral_losses(predicted, audio, config.mel)
        return sum(losses.values()), losses

    @jax.jit
    def step(state, audio, key):
        grads, losses = jax.grad(loss, has_aux=True)(state["params"], audio)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, losses

    return step


def train_vocoder(
    run_dir: Path, audios: Sequence[np.ndarray], model: VocoderConfig, config: VocoderTraining
) -> dict:
    """Trains (or resumes) on mono 16 kHz audio and returns the parameters."""
    graphdef, params = pure_params(Vocoder(model, rngs=nnx.Rngs(config.seed)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.peak_lr,
        min(100, config.fit.steps // 10),
        config.fit.steps,
        config.peak_lr * 0.02,
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adamw(schedule, b1=0.8, b2=0.99, weight_decay=0.01)
    )
    state = {"params": params, "opt": optimizer.init(params)}
    step = make_step(graphdef, optimizer, model)
    return fit(
        run_dir,
        "vocoder",
        config.fit,
        state,
        step,
        lambda start: segments(audios, config, start),
        config.seed,
    )["params"]
