"""Vocoder: log-mel frames to a waveform by ConvNeXt blocks and an inverse STFT.

Architecture of Vocos (Siuzdak 2023, arXiv 2306.00814 §3): the network stays at the frame rate and
predicts log magnitude and phase of each STFT frame, so that no upsampling layer is needed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slm_jax.audio.features import MelConfig, istft, log_mel, magnitude, stft
from slm_jax.nn.conv import Conv1d, ConvNeXt
from slm_jax.nn.layers import LayerNorm, Linear

# Bring log-mels of speech at usual levels near zero mean and unit variance.
_MEL_MEAN, _MEL_SCALE = -5.0, 2.5
_RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (256, 64))


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes; the default has 2.8 M parameters.

    Attributes:
      mel: the frames it reads, and the STFT it writes.
      width, mlp, layers: of the ConvNeXt stack.
    """

    mel: MelConfig = MelConfig()
    width: int = 256
    mlp: int = 768
    layers: int = 6

    def __post_init__(self):
        if min(self.width, self.mlp, self.layers) < 1:
            raise ValueError("VocoderConfig: width, mlp and layers must be positive")


def normalise_mel(mel: jax.Array) -> jax.Array:
    """Natural-log mels to the networks' range."""
    return (mel - _MEL_MEAN) / _MEL_SCALE


def denormalise_mel(mel: jax.Array) -> jax.Array:
    """Inverse of `normalise_mel`."""
    return mel * _MEL_SCALE + _MEL_MEAN


class Vocoder(nnx.Module):
    """[B, T, n_mels] natural-log mels -> [B, (T - 1) * hop] samples in [-1, 1].

    Attributes:
      lookahead: seconds of future mel frames that one sample depends on.
    """

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        mel = config.mel
        self.config = config
        self.embed = Conv1d(mel.n_mels, config.width, 7, rngs=rngs)
        self.norm = LayerNorm(config.width)
        self.stack = ConvNeXt(config.width, config.mlp, config.layers, rngs=rngs)
        self.norm_out = LayerNorm(config.width)
        self.head = Linear(config.width, mel.n_fft + 2, bias=True, rngs=rngs)

    @property
    def lookahead(self) -> float:
        frames = 3 + self.stack.lookahead + self.config.mel.n_fft // (2 * self.config.mel.hop)
        return frames * self.config.mel.hop / self.config.mel.rate

    def __call__(self, mel: Float[Array, "B T m"]) -> Float[Array, "B n"]:
        config = self.config.mel
        x = self.norm(self.embed(normalise_mel(mel)))
        x = self.norm_out(self.stack(x, jnp.ones(x.shape[:2])))
        log_magnitude, phase = jnp.split(self.head(x), 2, axis=-1)
        # exp is capped: one bad frame must not blow up the loss (as in Vocos' ISTFTHead).
        scale = jnp.minimum(jnp.exp(log_magnitude), 1e2)
        spectrum = jax.lax.complex(scale * jnp.cos(phase), scale * jnp.sin(phase))
        return istft(spectrum, config.n_fft, config.hop)


def spectral_losses(
    predicted: Float[Array, "B n"], target: Float[Array, "B n"], mel: MelConfig
) -> dict[str, jax.Array]:
    """Mean losses of a waveform: L1 of log-mels, and multi-resolution STFT distance
    (log-magnitude L1 plus spectral convergence; Yamamoto et al. 2020, arXiv 1910.11480 eq. 4-6).
    """
    mel_loss = jnp.mean(jnp.abs(log_mel(predicted, mel) - log_mel(target, mel)))
    fine = dataclasses.replace(mel, n_fft=512, hop=128)
    mel_loss += jnp.mean(jnp.abs(log_mel(predicted, fine) - log_mel(target, fine)))
    log_loss = convergence = 0.0
    for n_fft, hop in _RESOLUTIONS:
        a = magnitude(stft(predicted, n_fft, hop))
        b = magnitude(stft(target, n_fft, hop))
        log_loss += jnp.mean(jnp.abs(jnp.log(a + 1e-4) - jnp.log(b + 1e-4)))
        convergence += jnp.sqrt(jnp.sum((a - b) ** 2) / (jnp.sum(b**2) + 1e-6))
    count = len(_RESOLUTIONS)
    return {"mel": mel_loss, "log_stft": log_loss / count, "convergence": convergence / count}
