"""Semantic distillation: what the codec's first level knows beside the sound.

A linear map of its quantised latents has to point where a speech encoder's features point, so that
the first level says what is spoken and the others how. As in SpeechTokenizer (Zhang et al. 2023,
arXiv 2308.16692) and Mimi (Défossez et al. 2024, arXiv 2410.00037); here the levels stay residual,
as in the first of these. The map is used in training only.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.nn.layers import LECUN_NORMAL
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.chunked import Window
from slm_jax.tokenizers.unit_encoder import UNIT_RATE, UnitEncoder

_MAP = "teacher"  # of the parameters that are trained, those that the codec does not keep


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Whose features, and how much they count.

    Attributes:
      encoder: folder of a wav2vec 2.0, HuBERT or WavLM, or of a Whisper; "" for no teacher.
      layer: of the encoder (`UnitEncoder`).
      weight: of the loss; the spectral ones have 1.
    """

    encoder: str = ""
    layer: int = 9
    weight: float = 1.0

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError("Teacher: weight must not be negative")


class Distillation:
    """The loss, for segments of one length; nothing at all without a teacher.

    Args:
      teacher: who.
      frames: of a segment.
      hop: samples of a frame, at 16 kHz.

    Raises:
      UserError: no encoder is there, or it has no such layer.
    """

    def __init__(self, teacher: Teacher, frames: int, hop: int):
        count = -(-frames * hop * UNIT_RATE // AUDIO_RATE)  # of the teacher's frames
        # A segment is heard by itself, in a window with a second of silence behind it.
        window = Window(count * AUDIO_RATE // UNIT_RATE, 0, AUDIO_RATE, count)
        on = bool(teacher.encoder)
        self._encoder = UnitEncoder.load(teacher.encoder, teacher.layer, window) if on else None
        # Middles of the codec's frames among the middles of the teacher's.
        self._at = (np.arange(frames) + 0.5) * hop * UNIT_RATE / AUDIO_RATE - 0.5

    def start(self, width: int, seed: int) -> Params:
        """Parameters to train beside those of a codec whose latents have this width."""
        if self._encoder is None:
            return {}
        features = self._encoder.features(np.zeros(AUDIO_RATE, np.float32)).shape[1]
        return {_MAP: {"kernel": LECUN_NORMAL(jax.random.key(seed), (width, features))}}

    def features(self, audio: np.ndarray) -> np.ndarray | None:
        """Segments float32 [B, frames * hop] -> the teacher's features at the codec's frames, by
        linear interpolation: float32 [B, frames, D]."""
        if self._encoder is None:
            return None
        found = np.stack([self._encoder.features(row) for row in audio])
        at = np.clip(self._at, 0, found.shape[1] - 1)
        low = at.astype(int)
        part = (at - low)[:, None].astype(np.float32)
        return (1 - part) * found[:, low] + part * found[:, np.ceil(at).astype(int)]

    def losses(
        self, params: Params, latents: jax.Array, features: jax.Array | None
    ) -> dict[str, jax.Array]:
        """1 less the mean cosine of mapped latents [B, frames, width] and features ("teacher")."""
        if features is None:
            return {}
        told = latents @ params[_MAP]["kernel"]
        cosine = jnp.sum(_unit(told) * _unit(features), axis=-1)
        return {"teacher": 1 - jnp.mean(cosine)}


def without_map(params: Params) -> Params:
    """The codec's own among the parameters that are trained."""
    return {name: part for name, part in params.items() if name != _MAP}


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8)
