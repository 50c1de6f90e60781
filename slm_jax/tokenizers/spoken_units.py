"""Units and what speaks them: k-means units or supervised ones, with a unit vocoder of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from slm_jax.tokenizers.asr_units import WEIGHTS, AsrUnits
from slm_jax.tokenizers.taste import round_speaker
from slm_jax.tokenizers.unit_encoder import HOP
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer
from slm_jax.tokenizers.unit_vocoder import UNIT_RATE, UnitVocoder

Units: TypeAlias = UnitTokenizer | AsrUnits


def load_units(folder: Path | str | None, whisper: str, locate: Callable[[str], Path]) -> Units:
    """The units of a folder, whatever their kind; None for the starter's.

    Args:
      folder: of a `UnitTokenizer`, or of `AsrUnits`.
      whisper: what supervised units were trained in.
      locate: finds a model's folder by its name (`data_pipelines.fetch.locate`).

    Raises:
      UserError: the folder holds no units, or they do not belong to their encoder.
    """
    if folder and (Path(folder) / WEIGHTS).exists():
        return AsrUnits.load(locate(whisper), folder)
    return UnitTokenizer.load(folder, locate=locate)


def fiftieths(units: Units, audio: np.ndarray) -> np.ndarray:
    """The units of mono 16 kHz audio [n], int32 [T], one for each fiftieth of a second: slower ones
    are repeated, as far as the audio lasts."""
    codes, _ = units.encode(audio[None], np.array([len(audio)]))
    return np.repeat(codes[0, :, 0], _lasting(units))[: -(-len(audio) // HOP)]


class SpokenUnits:
    """Units with a unit vocoder; a `Tokenizer`, with which speaker vectors go along.

    Attributes:
      spec: the units'.
    """

    def __init__(self, units: Units, vocoder: UnitVocoder):
        self.spec, self.sample_rate, self.delay = units.spec, units.sample_rate, 0
        self._units, self._vocoder = units, vocoder

    @classmethod
    def load(cls, units: Units, folder: Path | str) -> SpokenUnits:
        """Reads the `UnitVocoder` of a folder.

        Raises:
          UserError: there is none, or it was trained for other units.
        """
        return cls(units, UnitVocoder.load(folder, units.spec.fingerprint))

    def encode(
        self, audio: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Tokenizer.encode`: codes int32 [B, T, 1], frames int32 [B] and speaker vectors
        float32 [B, E] in steps of 1 / 127."""
        codes, frames = self._units.encode(audio, lengths)
        rows = zip(np.asarray(audio), lengths, strict=True)
        voices = [round_speaker(self._vocoder.speaker(row[:count])) for row, count in rows]
        return codes, frames, np.stack(voices)

    def decode(self, codes: Any, frames: Any, speaker: Any) -> np.ndarray:
        """What `encode` gives -> float32 [B, n]; 0 beyond a row's end. Each code lasts as long as
        the units' clock says.

        Raises:
          ValueError, UserError: of `UnitVocoder.decode`.
        """
        codes = np.asarray(codes)[..., 0]
        units = np.where(np.arange(codes.shape[1]) < np.asarray(frames)[:, None], codes, -1)
        return self._vocoder.decode(units, np.full_like(units, _lasting(self)), speaker).audio


def _lasting(units: Units | SpokenUnits) -> int:
    """Fiftieths of a second that a code lasts."""
    return round(UNIT_RATE / float(units.spec.clock))
