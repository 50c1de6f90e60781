"""Discriminators of waveforms: spectrograms at several resolutions, cut into patches.

Multi-resolution spectrogram discrimination as in UnivNet (Jang et al. 2021, arXiv 2106.07889), with
least-squares objectives and feature matching as in HiFi-GAN (Kong et al. 2020, arXiv 2010.05646
eq. 3-6). Instead of 2-D convolutions, whose gradients XLA:CPU runs slowly, patches of 16 bins are
embedded, and mixed with their neighbours in time and frequency by products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.audio.features import magnitude, stft
from slm_jax.nn.layers import LayerNorm, Linear

RESOLUTIONS = ((1024, 512), (512, 256), (128, 64))
_PATCH = 16
_NEIGHBOURS = ((0, 0), (-2, 0), (-1, 0), (1, 0), (2, 0), (0, -1), (0, 1))  # in time, frequency


class _Mixer(nnx.Module):
    """[B, T, P, D] -> [B, T, P, D]: a patch, two neighbours on either side in time and one in
    frequency, as one product over all of them."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width)
        self.mix = Linear(len(_NEIGHBOURS) * width, width, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        time, patches = x.shape[1:3]
        padded = jnp.pad(self.norm(x), ((0, 0), (2, 2), (1, 1), (0, 0)))
        window = [padded[:, 2 + t : 2 + t + time, 1 + p : 1 + p + patches] for t, p in _NEIGHBOURS]
        return x + jax.nn.leaky_relu(self.mix(jnp.concatenate(window, axis=-1)), 0.1)


class SpectrogramDiscriminator(nnx.Module):
    """Audio [B, n] -> (scores [B, T, P], features) at one resolution."""

    def __init__(self, n_fft: int, hop: int, width: int, layers: int, *, rngs: nnx.Rngs):
        self.n_fft, self.hop = n_fft, hop
        self.patches = n_fft // 2 // _PATCH
        self.embed = Linear(_PATCH, width, bias=True, rngs=rngs)
        self.place = nnx.Param(0.1 * jax.random.normal(rngs.params(), (self.patches, width)))
        self.mixers = nnx.List([_Mixer(width, rngs=rngs) for _ in range(layers)])
        self.norm = LayerNorm(width)
        self.score = Linear(width, 1, bias=True, rngs=rngs)

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        loud = jnp.log(magnitude(stft(audio, self.n_fft, self.hop))[..., 1:] + 1e-4)
        patches = (loud + 4.0).reshape(*loud.shape[:2], self.patches, _PATCH) / 3.0
        x = self.embed(patches) + self.place[...]
        features = []
        for mixer in self.mixers:
            x = mixer(x)
            features.append(x)
        return self.score(self.norm(x))[..., 0], features


class Discriminators(nnx.Module):
    """One `SpectrogramDiscriminator` a resolution."""

    def __init__(self, width: int = 32, layers: int = 3, *, rngs: nnx.Rngs):
        self.parts = nnx.List(
            [SpectrogramDiscriminator(n, h, width, layers, rngs=rngs) for n, h in RESOLUTIONS]
        )

    def __call__(self, audio: jax.Array) -> list[tuple[jax.Array, list[jax.Array]]]:
        return [part(audio) for part in self.parts]


def discriminator_loss(discriminators: Discriminators, real: jax.Array, fake: jax.Array):
    """Least squares: real to 1, fake to 0 (mean over the resolutions)."""
    pairs = zip(discriminators(real), discriminators(fake), strict=True)
    losses = [jnp.mean((r - 1) ** 2) + jnp.mean(f**2) for (r, _), (f, _) in pairs]
    return sum(losses) / len(losses)


def generator_losses(
    discriminators: Discriminators, real: jax.Array, fake: jax.Array
) -> dict[str, jax.Array]:
    """{"adversarial": least squares to 1, "features": L1 distance relative to the real ones'}."""
    truths, fakes = discriminators(real), discriminators(fake)
    adversarial = features = 0.0
    for (_, wanted), (score, found) in zip(truths, fakes, strict=True):
        adversarial += jnp.mean((score - 1) ** 2)
        for a, b in zip(wanted, found, strict=True):
            a = jax.lax.stop_gradient(a)
            features += jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(a)) + 1e-3) / len(wanted)
    return {"adversarial": adversarial / len(fakes), "features": features / len(fakes)}
