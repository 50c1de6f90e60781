"""Conditional flow matching: frames from noise, along paths that are straight on average.

Lipman et al. 2022 (arXiv 2210.02747 §4.1, example II: optimal-transport paths), as Matcha-TTS
(Mehta et al. 2023, arXiv 2309.03199 eq. 4-6) uses it for mels, with the classifier-free guidance of
CosyVoice (Du et al. 2024, arXiv 2407.05407 §2.3). A regression writes the mean of all mels that a
text may have, which sounds dull; this draws one of them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slm_jax.nn.conv import ConvNeXtBlock
from slm_jax.nn.flow import TIME_FEATURES, Field, path, time_features
from slm_jax.nn.layers import LayerNorm, Linear, scan_layers, stack

_SPREAD = 0.4  # of what the condition leaves open, about that of normalised mels
_KERNEL = 7


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Sizes of the velocity network, and how it is used; the default has 4 M parameters.

    Attributes:
      width, mlp, layers: of the ConvNeXt stack.
      steps: Euler steps from noise to mels, each of them one pass through the network, or two with
        guidance.
      guidance: w of v = (1 + w) v(condition) - w v(nothing); 0 for none.
    """

    width: int = 256
    mlp: int = 768
    layers: int = 8
    steps: int = 10
    guidance: float = 0.7

    def __post_init__(self):
        if min(self.width, self.mlp, self.layers, self.steps) < 1:
            raise ValueError("FlowConfig: width, mlp, layers and steps must be positive")
        if self.guidance < 0:
            raise ValueError("FlowConfig: guidance must not be negative")


class Velocity(nnx.Module):
    """dx/dt of frames x at time t, given states of the same frames and a speaker.

    Args:
      config: sizes.
      features: F of a frame.
      condition: D of a state.
      speaker_width: E.
    """

    def __init__(
        self,
        config: FlowConfig,
        features: int,
        condition: int,
        speaker_width: int,
        *,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.enter = Linear(features, width, bias=True, rngs=rngs)
        self.condition = Linear(condition, width, rngs=rngs)
        self.speaker = Linear(speaker_width, width, rngs=rngs)
        self.time_in = Linear(TIME_FEATURES, width, bias=True, rngs=rngs)
        self.time_out = Linear(width, width, bias=True, rngs=rngs)
        self.layers = stack(lambda rngs: _TimedBlock(config, rngs), config.layers, rngs)
        self.norm = LayerNorm(width)
        self.leave = Linear(width, features, bias=True, rngs=rngs)
        self.mean = Linear(condition, features, bias=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T F"],
        t: Float[Array, " B"],
        condition: Float[Array, "B T D"],
        speaker: Float[Array, "B E"],
        mask: Float[Array, "B T"],
    ) -> Float[Array, "B T F"]:
        """mask is 0 behind the end of a row; zeros as condition and speaker say nothing."""
        keep = mask[..., None]
        time = self.time_out(jax.nn.silu(self.time_in(time_features(t))))[:, None]
        h = self.enter(x) + self.condition(condition) + self.speaker(speaker)[:, None]
        h, _ = scan_layers(self.layers, lambda block, h, _: (block(h, time, keep), None), h * keep)
        return (_gaussian(x, t, self.mean(condition)) + self.leave(self.norm(h))) * keep


class _TimedBlock(nnx.Module):
    """A ConvNeXt block that is told the time, as every block of Matcha-TTS's U-Net is."""

    def __init__(self, config: FlowConfig, rngs: nnx.Rngs):
        scale = 1.0 / config.layers
        self.block = ConvNeXtBlock(config.width, config.mlp, _KERNEL, scale, False, rngs=rngs)
        self.time = Linear(config.width, config.width, rngs=rngs)

    def __call__(self, h: jax.Array, time: jax.Array, keep: jax.Array) -> jax.Array:
        return self.block((h + self.time(time)) * keep) * keep


def _gaussian(x: jax.Array, t: jax.Array, mean: jax.Array) -> jax.Array:
    """The velocity if data were Gaussian around `mean` with deviation `_SPREAD`: E[data - noise |
    x], in closed form. The network learns what is left, as with the skips of EDM (Karras et al.
    2022, arXiv 2206.00364 §5); noise is then taken out without being learned."""
    t = t[:, None, None]
    gain = (_SPREAD**2 * t - (1 - t)) / (_SPREAD**2 * t**2 + (1 - t) ** 2)
    return mean + gain * (x - t * mean)


def flow_loss(
    field: Field, data: Float[Array, "B T F"], mask: Float[Array, "B T"], key: jax.Array
) -> Float[Array, ""]:
    """Mean squared error of the velocity at a time of each row's own (Matcha-TTS eq. 6).

    Args:
      field: what is trained, its condition given.
      data: the frames, near zero mean and unit variance.
      mask: 1 for the frames that count.
      key: of times and noise.
    """
    when, what = jax.random.split(key)
    t = jax.random.uniform(when, (len(data),))
    x, velocity = path(jax.random.normal(what, data.shape), data, t)
    error = jnp.mean((field(x, t) - velocity) ** 2, axis=-1)
    return jnp.sum(error * mask) / jnp.maximum(mask.sum(), 1)


def conditioned(
    network: Velocity, condition: jax.Array, speaker: jax.Array, mask: jax.Array
) -> Field:
    """The network with its condition [B, T, D], speaker [B, E] and mask [B, T] given."""
    return lambda x, t: network(x, t, condition, speaker, mask)


def guided(
    network: Velocity, condition: jax.Array, speaker: jax.Array, mask: jax.Array, guidance: float
) -> Field:
    """`conditioned`, pushed away from what the network does without a condition (Ho and Salimans
    2022, arXiv 2207.12598 eq. 6). The network must have been trained with some rows `forgotten`."""
    if not guidance:
        return conditioned(network, condition, speaker, mask)
    condition, speaker = (jnp.concatenate([c, jnp.zeros_like(c)]) for c in (condition, speaker))
    both = conditioned(network, condition, speaker, jnp.concatenate([mask, mask]))

    def field(x: jax.Array, t: jax.Array) -> jax.Array:
        told, untold = jnp.split(both(jnp.concatenate([x, x]), jnp.concatenate([t, t])), 2)
        return (1 + guidance) * told - guidance * untold

    return field


def forgotten(
    key: jax.Array, share: float, condition: jax.Array, speaker: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Condition [B, T, D] and speaker [B, E] with both of them zero in a `share` of the rows."""
    known = jax.random.uniform(key, (len(condition), 1)) >= share
    return condition * known[..., None], speaker * known
