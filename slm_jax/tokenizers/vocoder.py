"""Vocoder: spectral envelopes and pitch to a waveform, by filtering pulses and noise.

Source and filter as in neural source-filter vocoders (Wang et al. 2019, arXiv 1904.12088) and
HiFTNet (Li et al. 2023, arXiv 2309.09493): a pulse train at the pitch and white noise are known
signals; ConvNeXt blocks at the frame rate (as in Vocos, Siuzdak 2023, arXiv 2306.00814) predict the
filters, which are applied to their STFTs. Harmonics are then in phase without being learned, which
is most of what a vocoder of few steps gets wrong.
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

# Bring log-mels of speech at usual levels near zero mean and unit variance, and pitches likewise.
_MEL_MEAN, _MEL_SCALE = -5.0, 2.5
_PITCH_MEAN, _PITCH_SCALE = 5.0, 0.5  # of the natural log of Hz
_RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (256, 64))


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes; the default has 3.6 M parameters.

    Attributes:
      mel: the frames it reads, of `log_envelope`.
      n_fft, hop: of the filters that it writes; the hop divides that of `mel`.
      width, mlp, layers: of the ConvNeXt stack.
    """

    mel: MelConfig = MelConfig(n_fft=512, n_mels=40)
    n_fft: int = 512
    hop: int = 128
    width: int = 256
    mlp: int = 768
    layers: int = 6

    def __post_init__(self):
        if min(self.width, self.mlp, self.layers) < 1:
            raise ValueError("VocoderConfig: width, mlp and layers must be positive")
        if self.hop < 1 or self.mel.hop % self.hop or self.n_fft < 4 * self.hop:
            raise ValueError("VocoderConfig: hop must divide mel.hop, and n_fft be 4 hops or more")


def normalise_mel(mel: jax.Array) -> jax.Array:
    """Natural-log mels to the networks' range."""
    return (mel - _MEL_MEAN) / _MEL_SCALE


def denormalise_mel(mel: jax.Array) -> jax.Array:
    """Inverse of `normalise_mel`."""
    return mel * _MEL_SCALE + _MEL_MEAN


def normalise_pitch(hertz: jax.Array) -> jax.Array:
    """Hz to the networks' range."""
    return (jnp.log(hertz) - _PITCH_MEAN) / _PITCH_SCALE


def denormalise_pitch(pitch: jax.Array) -> jax.Array:
    """Inverse of `normalise_pitch`."""
    return jnp.exp(pitch * _PITCH_SCALE + _PITCH_MEAN)


def fill_pitch(hertz: Float[Array, "B T"], voiced: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Unvoiced frames get the pitch of the last voiced one before, else of the first one; 100 Hz
    where nothing is voiced. voiced is 0 or 1."""
    time = jnp.arange(hertz.shape[1])
    heard = voiced > 0.5
    before = jax.lax.cummax(jnp.where(heard, time, -1), axis=1)
    source = jnp.where(before >= 0, before, jnp.argmax(heard, axis=1)[:, None])
    filled = jnp.take_along_axis(hertz, source, axis=1)
    return jnp.where(heard.any(axis=1, keepdims=True), filled, 100.0)


def excitation(
    hertz: Float[Array, "B T"], voiced: Float[Array, "B T"], rate: int, hop: int
) -> tuple[Float[Array, "B n"], Float[Array, "B n"]]:
    """Pulses at the pitch and white noise, both of unit power, n = (T - 1) * hop.

    A pulse train is the sum of all cosines at multiples of the pitch below half the rate, in closed
    form (Dirichlet's kernel); voicing fades it in and out over one frame. The noise is the same in
    every call: what a vocoder says depends on its input alone.

    Args:
      hertz: pitch of each frame; whatever it is where `voiced` is 0.
      voiced: 0 to 1.
      rate, hop: samples a second and a frame.
    """
    cycles = _between(fill_pitch(hertz, voiced), hop) / rate
    within = jnp.cumsum(cycles, axis=-1)
    before = jnp.cumsum(within[..., -1] % 1.0, axis=1) - within[..., -1] % 1.0
    phase = 2 * jnp.pi * ((before[..., None] + within) % 1.0)
    harmonics = jnp.floor(0.5 / cycles)
    half = jnp.sin(phase / 2)
    near = jnp.abs(half) < 1e-4
    kernel = jnp.sin((harmonics + 0.5) * phase) / (2 * jnp.where(near, 1.0, half)) - 0.5
    pulses = jnp.where(near, harmonics, kernel) * jax.lax.rsqrt(harmonics / 2)
    pulses = (pulses * _between(voiced, hop)).reshape(hertz.shape[0], -1)
    noise = jax.random.normal(jax.random.key(0), pulses.shape[1:])
    return pulses, jnp.broadcast_to(noise, pulses.shape)


def _between(frames: jax.Array, hop: int) -> jax.Array:
    """[B, T] -> [B, T - 1, hop], linear interpolation."""
    share = jnp.arange(hop) / hop
    left, right = frames[:, :-1, None], frames[:, 1:, None]
    return left + (right - left) * share


class Vocoder(nnx.Module):
    """[B, T, n_mels] of `log_envelope` and pitch -> [B, (T - 1) * hop] samples.

    Attributes:
      lookahead: seconds of future frames that one sample depends on.
    """

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs):
        mel = config.mel
        self.config = config
        self.embed = Conv1d(mel.n_mels + 2, config.width, 7, rngs=rngs)
        self.norm = LayerNorm(config.width)
        self.stack = ConvNeXt(config.width, config.mlp, config.layers, rngs=rngs)
        self.norm_out = LayerNorm(config.width)
        outputs = 3 * (config.n_fft // 2 + 1) * (mel.hop // config.hop)
        self.head = Linear(config.width, outputs, bias=True, rngs=rngs)

    @property
    def lookahead(self) -> float:
        frames = 3 + self.stack.lookahead + self.config.mel.n_fft // (2 * self.config.mel.hop)
        return frames * self.config.mel.hop / self.config.mel.rate

    def __call__(
        self, mel: Float[Array, "B T m"], hertz: Float[Array, "B T"], voiced: Float[Array, "B T"]
    ) -> Float[Array, "B n"]:
        """hertz counts where voiced (0 or 1) is 1."""
        config = self.config
        tone = normalise_pitch(fill_pitch(hertz, voiced)) * voiced
        x = jnp.concatenate([normalise_mel(mel), tone[..., None], voiced[..., None]], axis=-1)
        x = self.norm(self.embed(x))
        x = self.norm_out(self.stack(x, jnp.ones(x.shape[:2])))
        steps = config.mel.hop // config.hop
        filters = self.head(x).reshape(x.shape[0], x.shape[1] * steps, -1)
        pulses, noise = excitation(hertz, voiced, config.mel.rate, config.mel.hop)
        frames = 1 + pulses.shape[1] // config.hop
        tonal, phase, airy = jnp.split(filters[:, :frames], 3, axis=-1)
        # exp is capped: one bad frame must not blow up the loss (as in Vocos' ISTFTHead).
        tonal, airy = (jnp.minimum(jnp.exp(x), 1e2) for x in (tonal, airy))
        harmonic = jax.lax.complex(tonal * jnp.cos(phase), tonal * jnp.sin(phase))
        spectrum = stft(pulses, config.n_fft, config.hop) * harmonic
        spectrum += stft(noise, config.n_fft, config.hop) * airy
        return istft(spectrum, config.n_fft, config.hop, pulses.shape[1])


def spectral_losses(
    predicted: Float[Array, "B n"], target: Float[Array, "B n"], rate: int
) -> dict[str, jax.Array]:
    """Mean losses of a waveform: L1 of log-mels, and multi-resolution STFT distance
    (log-magnitude L1 plus spectral convergence; Yamamoto et al. 2020, arXiv 1910.11480 eq. 4-6).
    """
    mel = MelConfig(rate=rate)
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
