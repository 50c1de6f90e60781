"""Units as a tokenizer: an encoder's layer, its k-means and, to speak them, a unit vocoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec
from slm_jax.tokenizers.kmeans import KMeans
from slm_jax.tokenizers.tokenizer import stack
from slm_jax.tokenizers.unit_encoder import RATE, UNIT_RATE, UnitEncoder
from slm_jax.tokenizers.unit_vocoder import UnitVocoder

STARTER = Path(__file__).resolve().parent.parent / "weights" / "units"
CONFIG, KMEANS = "config.json", "kmeans.safetensors"
_REMEDY = "fit one: python -m data_pipelines.fit_units --out DIR"


class UnitTokenizer:
    """Units at 50 Hz, with repeats; a `Tokenizer`.

    Attributes:
      spec: its fingerprint is the k-means', which holds that of encoder, layer and windows.
    """

    sample_rate, delay = RATE, 0

    def __init__(self, encoder: UnitEncoder, kmeans: KMeans, vocoder: UnitVocoder | None = None):
        self._encoder, self._kmeans, self._vocoder = encoder, kmeans, vocoder
        self.spec = StreamSpec(
            "units",
            "codes",
            float(UNIT_RATE),
            (len(kmeans.centroids),),
            fingerprint=kmeans.fingerprint,
            lookahead=encoder.lookahead,
        )

    @classmethod
    def load(
        cls,
        folder: Path | str | None = None,
        *,
        locate: Callable[[str], Path] = Path,
        vocoder: Path | str | None = None,
    ) -> UnitTokenizer:
        """Reads what `save_units` wrote.

        Args:
          folder: where it is; by default the starter, of Whisper tiny.en.
          locate: finds the encoder's folder by its name in config.json
            (`data_pipelines.fetch.locate`), or is given the path that stands there.
          vocoder: folder of a `UnitVocoder` for these units; `decode` needs one.

        Raises:
          UserError: a file is missing, or they do not belong together.
        """
        folder = Path(folder or STARTER)
        kmeans = KMeans.load(folder / KMEANS)
        try:
            config = json.loads((folder / CONFIG).read_text("utf-8"))
            name, layer = config["encoder"], config["layer"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"no unit tokenizer in {folder}: {error!r}", _REMEDY) from None
        encoder = UnitEncoder.load(locate(name), layer)
        if kmeans.source != encoder.source:
            raise UserError(
                f"the k-means in {folder} was fitted on another encoder than {name}, or windows",
                _REMEDY,
            )
        speaks = UnitVocoder.load(vocoder, kmeans.fingerprint) if vocoder else None
        return cls(encoder, kmeans, speaks)

    def encode(self, audio: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Tokenizer.encode`: codes int32 [B, T, 1], frames int32 [B] and, with a vocoder,
        speaker vectors float32 [B, E]."""
        rows = [row[:n] for row, n in zip(np.asarray(audio), lengths, strict=True)]
        units = self._encoder.units(self._kmeans, rows)
        codes, frames = stack([row[:, None] for row in units], np.int32)
        if self._vocoder is None:
            return codes, frames
        return codes, frames, np.stack([self._vocoder.speaker(row) for row in rows])

    def decode(self, codes: Any, frames: Any, speaker: Any = None) -> np.ndarray:
        """Codes int [B, T, 1], frames int [B], speakers float [B, E] -> float32 [B, n].

        Raises:
          UserError: no vocoder was loaded.
        """
        if self._vocoder is None:
            raise UserError("units without a unit vocoder are not spoken", "load one with them")
        codes, frames = np.asarray(codes)[..., 0], np.asarray(frames)
        units = np.where(np.arange(codes.shape[1]) < frames[:, None], codes, -1)
        return self._vocoder.decode(units, np.ones_like(units), speaker).audio


def units_fingerprint(folder: Path | str | None = None) -> str:
    """The fingerprint of the units of a tokenizer's folder, by default the starter's.

    Raises:
      UserError: there is no k-means.
    """
    return KMeans.load(Path(folder or STARTER) / KMEANS).fingerprint


def save_units(folder: Path, kmeans: KMeans, encoder: str, layer: int) -> None:
    """Writes kmeans.safetensors and config.json for `UnitTokenizer.load`.

    Args:
      folder: where to.
      kmeans: fitted on features of the encoder.
      encoder: what `locate` will be asked for.
      layer: of the encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kmeans.save(folder / KMEANS)
    text = json.dumps({"encoder": encoder, "layer": layer}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
