"""Audio to units at 50 Hz: features of a layer of a frozen encoder, and the nearest centroids.

HuBERT-like units (Lakhotia et al. 2021, arXiv 2102.01192 §2); an ASR's encoder can stand in for the
self-supervised one, as in CosyVoice's supervised tokens.

These encoders hear all that they are given. Here they are given windows, by rule: that bounds the
look-ahead and the cost of long recordings, and a stream gives what the whole recording gives. What
lasts no longer than the first window is heard whole.
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
from slm_jax.tokenizers.checks import mono
from slm_jax.tokenizers.chunked import Window, WindowStream
from slm_jax.tokenizers.kmeans import KMeans
from slm_jax.tokenizers.ssl_encoder import SslEncoder
from slm_jax.tokenizers.taste_listen import HOP
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.whisper import AUDIO_CONTEXT, Whisper

RATE = WHISPER_RATE  # of all these encoders
UNIT_RATE = RATE // HOP  # 50 Hz
# Six seconds at a time between a second on either side: a third more to compute than once through.
WINDOW = Window(6 * RATE, RATE, RATE, 6 * UNIT_RATE)


class UnitEncoder:
    """A layer of an encoder, to fit a k-means on and to make units with.

    Attributes:
      source: fingerprint of the encoder's weights, the layer and the windows, for `kmeans.fit`.
      lookahead: seconds of audio behind a frame that it depends on, at most.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], window: Window, source: str):
        self._run, self._window, self.source = run, window, source
        self.lookahead = (window.step + window.after - HOP) / RATE

    @classmethod
    def load(cls, folder: Path | str, layer: int, window: Window = WINDOW) -> UnitEncoder:
        """Reads an encoder.

        Args:
          folder: of a wav2vec 2.0, HuBERT or WavLM model (`SslEncoder`), or of a Whisper.
          layer: after so many of its layers, before any norm behind the last.
          window: what it hears at once, in samples; smaller ones come sooner, and cost more.

        Raises:
          UserError: no encoder is there, it has no such layer, or another rate than 50 Hz.
          ValueError: windows of no whole frames, or longer than a Whisper's 30 s.
        """
        if window != Window(*(x - x % HOP for x in window[:3]), window.step // HOP):
            raise ValueError(f"windows are whole frames of {HOP} samples, not {window}")
        ssl = _model_type(Path(folder)) in FAMILIES
        encoder = SslEncoder.load(folder) if ssl else Whisper.load(folder).encoder
        config = encoder.config
        count = config.layers if ssl else config.encoder_layers
        if not 0 <= layer <= count:
            raise UserError(f"{folder} has {count} layers, not {layer}", f"ask for 0 to {count}")
        if ssl and np.prod(config.conv_strides) != HOP:
            rate = RATE / np.prod(config.conv_strides)
            raise UserError(f"{folder} gives {rate:.1f} frames a second", "units come at 50 Hz")
        if not ssl and window.length > AUDIO_CONTEXT * HOP:
            raise ValueError(f"a Whisper hears 30 s, not {window.length / RATE:g} s")
        graphdef, params = pure_params(encoder)
        run = (_ssl if ssl else _whisper)(graphdef, params, layer, window.length)
        flat = flatten(params)
        weights = [np.asarray(flat[name]).tobytes() for name in sorted(flat)]
        return cls(run, window, fingerprint("features-2", layer, window, sorted(flat), *weights))

    def stream(self) -> WindowStream:
        """Features of a recording as it arrives: float32 [n] -> float32 [t, D]."""
        return WindowStream(lambda piece, _: self._run(mono(piece)), self._window)

    def features(self, audio: np.ndarray) -> np.ndarray:
        """Mono 16 kHz audio [n] -> float32 [T, D] at 50 Hz. T is n / 320, rounded up (Whisper) or
        one or two frames less (the others: whole windows of 25 ms).

        Raises:
          ValueError: not a vector of floats.
          UserError: samples that are not finite or far too loud.
        """
        stream = self.stream()
        found = stream.push(mono(audio)) + stream.finish()
        return np.concatenate(found)

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
                    "the k-means was fitted on features of another encoder, layer or window",
                    "take those that it was fitted on, or fit another",
                )
            units.append(kmeans.assign(features))
        return units


def _ssl(
    graphdef: nnx.GraphDef, params: Params, layer: int, _: int
) -> Callable[[np.ndarray], np.ndarray]:
    run = jax.jit(lambda params, *args: merge(graphdef, params).features(*args, layer))
    frames = merge(graphdef, params).config.frames

    def features(audio: np.ndarray) -> np.ndarray:
        padded = np.pad(audio, (0, bucket(max(len(audio), 1), RATE) - len(audio)))
        found = run(params, padded[None], np.array([len(audio)]))
        return np.asarray(found)[0, : frames(len(audio))]

    return features


def _whisper(
    graphdef: nnx.GraphDef, params: Params, layer: int, length: int
) -> Callable[[np.ndarray], np.ndarray]:
    mels = merge(graphdef, params).config.n_mels
    run = jax.jit(lambda p, audio: merge(graphdef, p)(whisper_log_mel(audio, mels))[1][layer])

    def features(audio: np.ndarray) -> np.ndarray:
        padded = np.pad(audio, (0, length - len(audio)))
        return np.asarray(run(params, padded[None]), np.float32)[0, : -(-len(audio) // HOP)]

    return features


def _model_type(folder: Path) -> str:
    """Of config.json; "" where there is none, which other readers complain about."""
    try:
        return str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
