"""Units as a tokenizer: an encoder's layer and its k-means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec
from slm_jax.tokenizers.kmeans import KMeans
from slm_jax.tokenizers.tokenizer import stack
from slm_jax.tokenizers.unit_encoder import RATE, UNIT_RATE, UnitEncoder

STARTER = Path(__file__).resolve().parent.parent / "weights" / "units"
CONFIG, KMEANS = "config.json", "kmeans.safetensors"
_REMEDY = "fit one: python -m data_pipelines.fit_units --out DIR"


class UnitTokenizer:
    """Units at 50 Hz, with repeats: a `Tokenizer`, but for `decode` (`spoken_units`).

    Attributes:
      spec: its fingerprint is the k-means', which holds that of encoder, layer and windows.
    """

    sample_rate, delay = RATE, 0

    def __init__(self, encoder: UnitEncoder, kmeans: KMeans):
        self._encoder, self._kmeans = encoder, kmeans
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
        cls, folder: Path | str | None = None, *, locate: Callable[[str], Path] = Path
    ) -> UnitTokenizer:
        """Reads what `save_units` wrote.

        Args:
          folder: where it is; by default the starter, of Whisper tiny.en.
          locate: finds the encoder's folder by its name in config.json
            (`data_pipelines.fetch.locate`), or is given the path that stands there.

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
        return cls(encoder, kmeans)

    def encode(self, audio: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode`: codes int32 [B, T, 1], frames int32 [B]."""
        rows = [row[:n] for row, n in zip(np.asarray(audio), lengths, strict=True)]
        units = self._encoder.units(self._kmeans, rows)
        return stack([row[:, None] for row in units], np.int32)


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
