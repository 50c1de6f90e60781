"""Audio to units at 50 Hz: features of a layer of a frozen encoder, and the nearest centroids.

HuBERT-like units (Lakhotia et al. 2021, arXiv 2102.01192 §2); an ASR's encoder can stand in for the
self-supervised one, as in CosyVoice's supervised tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from slm_jax.audio.features import WHISPER_RATE, whisper_log_mel
from slm_jax.errors import UserError
from slm_jax.interop.ssl_encoder import FAMILIES
from slm_jax.nn.tree import Params, flatten, merge, pure_params
from slm_jax.streams import fingerprint
from slm_jax.tokenizers.kmeans import KMeans
from slm_jax.tokenizers.ssl_encoder import SslEncoder
from slm_jax.tokenizers.taste_listen import HOP, context
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.whisper import Whisper

_RATE = WHISPER_RATE  # of all these encoders


class UnitEncoder:
    """A layer of an encoder, to fit a k-means on and to make units with.

    Attributes:
      source: fingerprint of the encoder's weights and the layer, for `kmeans.fit`.
    """

    def __init__(self, features: Callable[[np.ndarray], np.ndarray], source: str):
        self._features, self.source = features, source

    @classmethod
    def load(cls, folder: Path | str, layer: int) -> UnitEncoder:
        """Reads an encoder.

        Args:
          folder: of a wav2vec 2.0, HuBERT or WavLM model (`SslEncoder`), or of a Whisper.
          layer: after so many of its layers, before any norm behind the last.

        Raises:
          UserError: no encoder is there, it has no such layer, or another rate than 50 Hz.
        """
        ssl = _model_type(Path(folder)) in FAMILIES
        encoder = SslEncoder.load(folder) if ssl else Whisper.load(folder).encoder
        config = encoder.config
        count = config.layers if ssl else config.encoder_layers
        if not 0 <= layer <= count:
            raise UserError(f"{folder} has {count} layers, not {layer}", f"ask for 0 to {count}")
        if ssl and np.prod(config.conv_strides) != HOP:
            rate = _RATE / np.prod(config.conv_strides)
            raise UserError(f"{folder} gives {rate:.1f} frames a second", "units come at 50 Hz")
        graphdef, params = pure_params(encoder)
        features = (_ssl if ssl else _whisper)(graphdef, params, layer)
        flat = flatten(params)
        weights = [np.asarray(flat[name]).tobytes() for name in sorted(flat)]
        return cls(features, fingerprint("features-1", layer, sorted(flat), *weights))

    def features(self, audio: np.ndarray) -> np.ndarray:
        """Mono 16 kHz audio [n] -> float32 [T, D] at 50 Hz. T is n / 320, rounded up (Whisper) or
        one or two frames less (the others: whole windows of 25 ms). The padding depends on the
        length alone.

        Raises:
          ValueError: audio of more than 29 s for a Whisper.
        """
        return self._features(np.asarray(audio, np.float32))

    def units(self, kmeans: KMeans, audios: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The units of mono 16 kHz audio [n] each: int32 [T] each, with repeats (`deduplicate`).

        Raises:
          UserError: the k-means was fitted on other features.
        """
        units = []
        for audio in audios:
            features = self.features(audio)
            width = kmeans.centroids.shape[1]
            if kmeans.source not in ("", self.source) or features.shape[1] != width:
                raise UserError(
                    "the k-means was fitted on features of another encoder or layer",
                    "take the encoder and the layer that it was fitted on, or fit another",
                )
            units.append(kmeans.assign(features))
        return units


def _ssl(graphdef: nnx.GraphDef, params: Params, layer: int) -> Callable[[np.ndarray], np.ndarray]:
    run = jax.jit(lambda params, *args: merge(graphdef, params).features(*args, layer))
    frames = merge(graphdef, params).config.frames

    def features(audio: np.ndarray) -> np.ndarray:
        padded = np.pad(audio, (0, bucket(max(len(audio), 1), _RATE) - len(audio)))
        found = run(params, padded[None], np.array([len(audio)]))
        return np.asarray(found)[0, : frames(len(audio))]

    return features


def _whisper(
    graphdef: nnx.GraphDef, params: Params, layer: int
) -> Callable[[np.ndarray], np.ndarray]:
    mels = merge(graphdef, params).config.n_mels
    run = jax.jit(lambda p, audio: merge(graphdef, p)(whisper_log_mel(audio, mels))[1][layer])

    def features(audio: np.ndarray) -> np.ndarray:
        padded = np.pad(audio, (0, context(len(audio)) * _RATE - len(audio)))
        return np.asarray(run(params, padded[None]), np.float32)[0, : -(-len(audio) // HOP)]

    return features


def _model_type(folder: Path) -> str:
    """Of config.json; "" where there is none, which other readers complain about."""
    try:
        return str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
