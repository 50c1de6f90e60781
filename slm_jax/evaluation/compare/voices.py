"""From codes to sound, and from sound to words: what the comparison hears systems by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from slm_jax.audio import decode
from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, Record
from slm_jax.evaluation.compare import facts
from slm_jax.layouts import Layout
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.codecs.codec import Codec
from slm_jax.tokenizers.codecs.frame_latents import FrameLatents
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.tokenizers.unit_vocoder import UnitVocoder


class Voices(NamedTuple):
    """Detokenizers of the dataset's streams, and an ear.

    Attributes:
      asr: hears what is said.
      text: tokenizer of the text.
      taste, codec, units, latents: by family; units and latents are None where nothing speaks them.
    """

    asr: Asr
    text: TextTokenizer
    taste: Taste
    codec: Codec
    units: UnitVocoder | None
    latents: FrameLatents | None = None

    def mute(self, layout: Layout, record: Record) -> str:
        """Why a layout cannot say the text of a record; empty where it can."""
        if not facts.said(layout):
            return "it only listens"
        if not facts.texts(layout):
            return "it has no text"
        if not facts.answers_text(layout, record):
            return "its text follows the speech"
        if audible(layout) not in ("codec", "taste", "units", "latents"):
            return f"nothing speaks {audible(layout)}"
        if audible(layout) == "units" and self.units is None:
            return "nothing speaks units: set CompareJob.unit_vocoder"
        return ""

    def speak(
        self, family: str, codes: Sequence[np.ndarray], records: Sequence[Record], repeats: bool
    ) -> list[np.ndarray]:
        """16 kHz audio of codes int [n, levels], or vectors, of records.

        Args:
          family: of the codes.
          codes: one array a record.
          records: whose words and voices these are.
          repeats: whether units come with their repeats.
        """
        speak: dict[str, Callable[[np.ndarray, Record], np.ndarray]] = {
            "codec": lambda codes, _: _frames(self.codec, codes),
            "latents": lambda vectors, _: _frames(self.latents, vectors),
            "taste": self._taste,
            "units": lambda ids, record: self._units(ids, record, repeats),
        }
        return [
            speak[family](ids, record) if len(ids) else np.zeros(0, np.float32)
            for ids, record in zip(codes, records, strict=True)
        ]

    def hear(self, audios: Sequence[np.ndarray]) -> list[str]:
        """What the recogniser writes of 16 kHz audio."""
        heard = self.asr.transcribe(audios, "en", context="bucket", word_times=False)
        return [one.text for one in heard]

    def _taste(self, codes: np.ndarray, record: Record) -> np.ndarray:
        words = [word.text for word in record[WORDS].words][: len(codes)]
        [audio], _ = self.taste.decode([words], [codes], [self.taste.default_speaker])
        return audio

    def _units(self, codes: np.ndarray, record: Record, repeats: bool) -> np.ndarray:
        voice = self.units.speaker(decode.load(record[AUDIO].flac))
        ids = codes[None, :, 0]
        spoken = self.units.decode(ids, np.ones_like(ids) if repeats else None, voice[None])
        return resample(spoken.audio[0], self.units.sample_rate, AUDIO_RATE)


def audible(layout: Layout) -> str:
    """The family that a layout is heard by, of those that it says.

    A codec of several levels comes before TASTE, then units, then a codec's first level.
    """
    said = facts.said(layout)
    levels = {stream.family: len(stream.vocab) for stream in said}
    if levels.get("codec", 0) > 1:
        return "codec"
    return next((family for family in ("taste", "units") if family in levels), said[0].family)


def _frames(codec: Codec, codes: np.ndarray) -> np.ndarray:
    # Shapes of a few kinds only, because each is compiled.
    frames = -(-len(codes) // 64) * 64
    padded = np.pad(codes, ((0, frames - len(codes)), (0, 0)))
    whole = np.asarray(codec.decode(padded[None], np.array([len(codes)])))[0]
    count = round(len(codes) / float(codec.spec.clock) * codec.sample_rate)
    return resample(whole[:count], codec.sample_rate, AUDIO_RATE)
