"""Losses as named (sum, weight) pairs, so that sums over devices and microbatches stay exact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from slm_jax.models.heads import Latent
from slm_jax.models.speech_lm import Outputs
from slm_jax.nn.losses import TokenLoss, cross_entropy

Losses = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the objective. The defaults are those of TASTE-SpokenLM (HF port).

    `text`, `speech`, `kl` and `levels` are of a `SpeechLMConfig`; a `GridLMConfig` says its own.
    The others are of both, of every softmax over ids, and of training alone: what is measured on
    held-out data stays the plain cross-entropy.

    Attributes:
      text: of the text cross-entropy.
      speech: of the speech losses together: their weighted mean over levels, or the latent loss.
      kl: of the KL divergence from the frozen text LLM; 0 makes the reference unnecessary.
      levels: relative weights of the levels, coarse first; empty for equal ones.
      label_smoothing, z_loss: as in `slm_jax.nn.losses.cross_entropy`; 0.1 and 1e-4 are usual.
    """

    text: float = 0.05
    speech: float = 0.5
    kl: float = 0.45
    levels: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("text", "speech", "kl", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label_smoothing must be at least 0 and below 1")
        if not (self.text or self.speech or self.kl):
            raise ValueError("text, speech and kl must not all be 0: nothing would be trained")
        if self.levels and (min(self.levels) < 0 or not sum(self.levels)):
            raise ValueError("levels must not be negative, nor all zero")

    @property
    def token_loss(self) -> TokenLoss:
        """What a prediction of an id costs in training."""
        return functools.partial(
            cross_entropy, label_smoothing=self.label_smoothing, z_loss=self.z_loss
        )

    def coefficients(self, levels: int, continuous: bool) -> dict[str, float]:
        """What the mean of each loss counts in the objective of a model with so many levels.

        Raises:
          ValueError: `levels` weighs another number of levels.
        """
        found = {"text": self.text} | ({"kl": self.kl} if self.kl else {})
        if continuous:
            return found | {"latent": self.speech}
        weights = self.levels or (1.0,) * levels
        if len(weights) != levels:
            raise ValueError(f"levels has {len(weights)} weights for {levels} speech levels")
        share = self.speech / sum(weights)
        return found | {f"speech/{k}": share * weight for k, weight in enumerate(weights)}


def losses(
    outputs: Outputs,
    batch: Mapping[str, jax.Array],
    reference_text_logits: jax.Array | None = None,
    token_loss: TokenLoss = cross_entropy,
) -> Losses:
    """All losses of a batch; every sum and weight is an f32 scalar.

    "text": cross-entropy of the text row. "speech/k": of level k. "kl": KL(reference || model) at
    the text targets. With the continuous head "latent" takes the place of "speech/k". A position
    of weight 0 counts nowhere, whatever id its target has.

    Args:
      outputs: of the model on `batch`.
      batch: "targets" int [B, R, S] and "weights" f32 [B, R, S], text in row 0.
      reference_text_logits: [B, S, V] of the frozen LLM, or None for no "kl".
      token_loss: of text and levels.
    """
    targets, counts = batch["targets"], batch["weights"].astype(jnp.float32)
    weights = loss_weights(batch, outputs.latent is not None, reference_text_logits is not None)
    sums = {
        "text": _sum(token_loss(outputs.text_logits, targets[:, 0], counts[:, 0]), counts[:, 0])
    }
    if outputs.latent is None:
        for level, logits in enumerate(outputs.speech_logits):
            count = counts[:, level + 1]
            sums[f"speech/{level}"] = _sum(token_loss(logits, targets[:, level + 1], count), count)
    else:
        count = counts[:, 1:].min(1)
        sums["latent"] = _sum(latent_loss(outputs.latent, targets[:, 1:], count), count)
    if reference_text_logits is not None:
        kl = kl_divergence(jax.lax.stop_gradient(reference_text_logits), outputs.text_logits)
        sums["kl"] = _sum(kl, counts[:, 0])
    return {name: (total, weights[name]) for name, total in sums.items()}


def loss_weights(
    batch: Mapping[str, jax.Array], continuous: bool, reference: bool
) -> dict[str, jax.Array]:
    """The weights of `losses`, which depend on the batch alone: name -> f32 scalar."""
    counts = batch["weights"].astype(jnp.float32)
    weights = {"text": counts[:, 0].sum()}
    if continuous:
        weights["latent"] = counts[:, 1:].min(1).sum()
    else:
        weights |= {f"speech/{k}": counts[:, k + 1].sum() for k in range(counts.shape[1] - 1)}
    return weights | ({"kl": weights["text"]} if reference else {})


def kl_divergence(reference: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(softmax(reference) || softmax(logits)) in nats: two [B, S, V] -> f32 [B, S]."""
    reference, logits = reference.astype(jnp.float32), logits.astype(jnp.float32)
    reference_lse = jax.nn.logsumexp(reference, axis=-1)
    shares = jnp.exp(reference - reference_lse[..., None])
    cross = (shares * (reference - logits)).sum(-1)
    return cross - reference_lse + jax.nn.logsumexp(logits, axis=-1)


def latent_loss(latent: Latent, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """0.5 MSE(z, t) + 0.5 KL(N(mean, var) || N(t, I)), means over the latent's width, f32 [B, S].

    z = mean + std * noise is the sampled latent and t the sum of the target codes' vectors
    (TASTE-SpokenLM, `_calcuate_loss_taste_mse`). The expectation over the noise is taken in closed
    form, E (z - t)^2 = (mean - t)^2 + var, so the gradient has no sampling noise; the published
    straight-through sample instead treats the noise as 1 in the variance's gradient.

    Args:
      latent: of the continuous head.
      targets: int [B, K, S]; where `weights` is 0 they need not be codes.
      weights: [B, S].
    """
    codes = jnp.where(weights[:, None] > 0, targets, 0)
    tables = zip(latent.codebooks, codes.swapaxes(0, 1), strict=True)
    target = sum(table[ids] for table, ids in tables)
    squared = (latent.mean - target) ** 2
    var = jnp.exp(latent.logvar)
    mse = (squared + var).mean(-1)
    kl = 0.5 * (var + squared - 1 - latent.logvar).mean(-1)
    return 0.5 * mse + 0.5 * kl


def _sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum()
