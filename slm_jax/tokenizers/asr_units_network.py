"""Codes within a Whisper's encoder: the network of `asr_units`.

Whisper's layers up to one, a mean over a few frames, a few scalars that are rounded, and the layers
above, which learn to make of codes what Whisper's own decoder can read.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.audio.features import WHISPER_HOP, WHISPER_RATE, whisper_log_mel
from slm_jax.errors import UserError
from slm_jax.nn.layers import LayerNorm, Linear, scan_layers, stack
from slm_jax.nn.quantizers import FsqConfig, Quantized, fsq
from slm_jax.nn.tree import flatten, pure_params
from slm_jax.streams import fingerprint
from slm_jax.tokenizers.whisper import (
    AUDIO_CONTEXT,
    Decoder,
    Encoder,
    Layer,
    Whisper,
    WhisperConfig,
    sinusoids,
)

CONTEXTS = (4, 6, 8, 16, 30)  # seconds; an utterance is padded to the first that exceeds it by one
LONGEST = CONTEXTS[-1] - 1  # seconds of an utterance
RATE = WHISPER_RATE
FRAME = 2 * WHISPER_HOP  # samples of an encoder frame
FRAME_RATE = RATE // FRAME  # 50 Hz


@dataclasses.dataclass(frozen=True)
class AsrUnitsConfig:
    """Where in a Whisper the codes are, and how many.

    Attributes:
      whisper: fingerprint of its weights; training fills it in.
      layer: encoder layers below the codes; at least one is above.
      pool: encoder frames of one code, 2 for 25 Hz and 4 for 12.5; divides 100.
      fsq: codes of a step; the default has one level of 3^8.
    """

    whisper: str = ""
    layer: int = 2
    pool: int = 2
    fsq: FsqConfig = FsqConfig(levels=1, grid=(3,) * 8)

    def __post_init__(self):
        if self.layer < 1:
            raise ValueError("AsrUnitsConfig: layer must be positive")
        if self.pool < 1 or 100 % self.pool:
            raise ValueError(f"AsrUnitsConfig: pool must divide 100, got {self.pool}")

    @property
    def hop(self) -> int:
        """Samples of one code."""
        return self.pool * FRAME

    def frames(self, samples: int) -> int:
        """Codes of so many samples; the last may be of less audio than the others."""
        return -(-samples // self.hop)

    def context(self, frames: int) -> int:
        """Codes that so many are padded to, a function of them alone; a second is silence.

        Raises:
          UserError: of more than 29 s.
        """
        for seconds in CONTEXTS:
            if (frames - 1) * self.pool < (seconds - 1) * FRAME_RATE:
                return seconds * FRAME_RATE // self.pool
        seconds = frames * self.pool / FRAME_RATE
        raise UserError(
            f"{seconds:.1f} s of audio, a Whisper hears {LONGEST} s at a time",
            "cut it into utterances",
        )


class AsrUnitsNetwork(nnx.Module):
    """A Whisper with a quantiser in its encoder.

    `below` ends with a norm of its own, that of the projection; positions are taken out before it
    and put in again behind the codes, which need not know them.
    """

    def __init__(self, units: AsrUnitsConfig, config: WhisperConfig, *, rngs: nnx.Rngs):
        lower = dataclasses.replace(config, encoder_layers=units.layer)
        self.below = Encoder(lower, rngs)
        self.down = Linear(config.width, units.fsq.width, bias=True, rngs=rngs)
        self.up = Linear(units.fsq.width, config.width, bias=True, rngs=rngs)
        self.above = stack(
            lambda rngs: Layer(config, config.encoder_heads, cross=False, rngs=rngs),
            config.encoder_layers - units.layer,
            rngs,
        )
        self.norm = LayerNorm(config.width)
        self.decoder = Decoder(config, rngs)
        self.units, self.config = units, config

    def quantise(self, audio: jax.Array) -> Quantized:
        """Audio [B, T * hop] -> codes [B, T, K], latents [B, T, width of the FSQ]."""
        residual = self.below(whisper_log_mel(audio, self.config.n_mels))[1][-1]
        x = residual - self._positions(residual.shape[1])
        x = x.reshape(len(x), -1, self.units.pool, x.shape[-1]).mean(axis=2)
        return fsq(self.units.fsq, self.down(self.below.norm(x)))

    def hear(self, latents: jax.Array, frames: jax.Array) -> jax.Array:
        """Latents [B, T, width of the FSQ], of which int [B] count -> what the decoder attends to,
        [B, T * pool, D]."""
        spread = self.up(latents)
        spread *= (jnp.arange(spread.shape[1]) < frames[:, None])[..., None]
        x = jnp.repeat(spread, self.units.pool, axis=1)
        x += self._positions(x.shape[1])
        x, _ = scan_layers(self.above, lambda layer, x, _: (layer.hear(x), None), x)
        return self.norm(x)

    def _positions(self, frames: int) -> np.ndarray:
        return sinusoids(AUDIO_CONTEXT, self.config.width)[:frames]


def identify(whisper: Whisper) -> str:
    """Fingerprint of a Whisper's weights."""
    flat = flatten(pure_params(whisper)[1])
    return fingerprint("whisper-1", *(np.asarray(flat[name]).tobytes() for name in sorted(flat)))


def whisper_weights(config: AsrUnitsConfig, whisper: Whisper) -> dict[str, jax.Array]:
    """What `AsrUnitsNetwork` begins with: path -> array, of all but its projections and the norm
    before them.

    Raises:
      UserError: this Whisper has no layer above the codes.
    """
    if config.layer >= whisper.config.encoder_layers:
        raise UserError(
            f"this Whisper has {whisper.config.encoder_layers} encoder layers, codes after "
            f"{config.layer} have none above",
            "set AsrUnitsConfig.layer lower",
        )
    encoder = flatten(pure_params(whisper.encoder)[1])
    flat = {f"decoder/{k}": v for k, v in flatten(pure_params(whisper.decoder)[1]).items()}
    for name, array in encoder.items():
        part, _, rest = name.partition("/")
        if part == "layers":
            flat[f"below/{name}"] = array[: config.layer]
            flat[f"above/{rest}"] = array[config.layer :]
        elif part == "norm":
            flat[name] = array
        else:
            flat[f"below/{name}"] = array
    return flat
