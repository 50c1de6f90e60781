"""How long and how high each word of a recording is, by judges that know nothing of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from slm_jax.data.schema import AUDIO_RATE

HOP = 256  # samples between the frames of a pitch track
_BUCKET = 2 * AUDIO_RATE  # lengths that a pitch track is compiled for
_VOICED = 3  # frames that a word must have to have a pitch: 48 ms
Times = tuple[float, float] | None
# [B, n] float32 at 16 kHz -> hertz and voiced [B, T], frame t centred on sample t * HOP
Pitch = Callable[[np.ndarray], tuple[Any, Any]]


class Aligner(Protocol):
    """Places known words on the time axis."""

    def align(self, audio: np.ndarray, words: Sequence[str]) -> Sequence[Times]:
        """(start, end) in seconds of each word, None where it cannot say."""
        ...


class Prosody(NamedTuple):
    """Of each word, float64 [W], NaN for none.

    Attributes:
      durations: seconds.
      pitches: hertz, median of the word's voiced frames.
    """

    durations: np.ndarray
    pitches: np.ndarray


class Judges:
    """An aligner, and a pitch tracker that looks where the aligner says a word is."""

    def __init__(self, aligner: Aligner, pitch: Pitch):
        self._aligner = aligner
        self._pitch = pitch

    def measure(self, audio: np.ndarray, words: Sequence[str]) -> Prosody:
        """Judges the words said in audio, float32 [n] at 16 kHz."""
        times = self._aligner.align(audio, words)
        padded = np.pad(audio, (0, -len(audio) % _BUCKET))
        hertz, voiced = (np.asarray(track)[0] for track in self._pitch(padded[None]))
        spans = [(np.nan, np.nan) if span is None else span for span in times]
        durations = [end - start for start, end in spans]
        pitches = [_median(hertz, voiced, *span) for span in spans]
        return Prosody(np.array(durations), np.array(pitches))


def _median(hertz: np.ndarray, voiced: np.ndarray, start: float, end: float) -> float:
    centres = np.arange(len(hertz)) * HOP / AUDIO_RATE
    inside = hertz[(centres >= start) & (centres < end) & voiced]
    return float(np.median(inside)) if len(inside) >= _VOICED else np.nan
