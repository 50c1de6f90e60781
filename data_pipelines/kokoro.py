"""Kokoro-82M (StyleTTS 2 with an iSTFT vocoder) as int8 ONNX: a voice is a table of styles.

The fetched tables are of Japanese voices; they speak English as well, from English IPA. eSpeak (in
piper-tts) writes the IPA, which is respelt in the symbols that the model was trained on.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import fetch
from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError

VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
RATE = 24_000  # Hz, of the model's output
AUDIBLE = 0.01  # amplitude; what lies beyond the first and the last such sample is silence
MARGIN = 0.1  # seconds of that silence which are kept
MAX_SYMBOLS = 510  # rows of a style table; the model sees two more, one at each end

# eSpeak's en-us spelling -> misaki's American English, which Kokoro learned: one symbol for a
# diphthong or an affricate, no length marks. In this order. misaki writes ᵊ before a syllabic l
# alone, which this spelling does not tell from others, as in "hello".
RESPELL = (
    *(("tʃ", "ʧ"), ("dʒ", "ʤ")),
    *(("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("oʊ", "O"), ("ɔɪ", "Y")),
    *(("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("ɾ", "T"), ("əl", "ᵊl")),
    *(("ː", ""), ("ᵻ", "ɪ"), ("r", "ɹ"), ("x", "k")),
    *(("\u0303", ""), ("\u0329", "")),  # nasal vowels and syllabic consonants, as NFD writes them
)


def respell(ipa: str) -> str:
    """eSpeak's English IPA (NFD) in Kokoro's symbols."""
    for espeak, symbol in RESPELL:
        ipa = ipa.replace(espeak, symbol)
    return ipa


def blend_weights(count: int, rng: random.Random) -> list[float]:
    """Weights that sum to one, uniform over all such (a flat Dirichlet draw)."""
    drawn = [-math.log(rng.random()) for _ in range(count)]
    return [weight / sum(drawn) for weight in drawn]


def style(
    tables: Mapping[str, np.ndarray], names: Sequence[str], weights: Sequence[float], symbols: int
) -> np.ndarray:
    """The style of one sentence: the row for its length, of the weighted sum of the voices' tables.

    Args:
      tables: voice -> float32 [MAX_SYMBOLS, 1, width].
      names, weights: voices and how much of each.
      symbols: how many symbols the sentence has, 1 to MAX_SYMBOLS.

    Returns:
      float32 [1, width].
    """
    parts = [
        weight * tables[name][symbols - 1] for name, weight in zip(names, weights, strict=True)
    ]
    return np.sum(parts, axis=0, dtype=np.float32)


def trimmed(audio: np.ndarray) -> np.ndarray:
    """The audible part of [n] samples at RATE with MARGIN seconds around it; [0] of silence."""
    [audible] = np.nonzero(np.abs(audio) > AUDIBLE)
    if not len(audible):
        return audio[:0]
    margin = int(MARGIN * RATE)
    return audio[max(0, audible[0] - margin) : audible[-1] + margin]


class Kokoro:
    """One voice of Kokoro, or a blend whose weights are drawn anew for each sentence.

    Args:
      names: of VOICES.

    Raises:
      UserError: piper-tts or onnxruntime is not installed, or the model cannot be fetched.
    """

    def __init__(self, names: Sequence[str]):
        self.speaker = "+".join(names)
        self.source = f"kokoro:{self.speaker}"
        self.licence = fetch.licence("kokoro")
        self._names = names
        self._espeak = _espeak()
        folder = fetch.locate("kokoro")
        self._vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))["vocab"]
        with np.load(folder / "voices_ja.npz") as tables:
            self._tables = {name: tables[name] for name in names}
        self._model = _session(folder / "model.onnx")

    def speak(self, text: str, rate: float, rng: random.Random) -> np.ndarray:
        """float32 [n] at 16 kHz, the same for the same text, rate and state of `rng`."""
        ids = self._ids(text)
        weights = blend_weights(len(self._names), rng)
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": style(self._tables, self._names, weights, len(ids)),
            "speed": np.array([1 / rate], np.float32),
        }
        [audio, *_] = self._model.run(None, inputs)
        audio = trimmed(audio.ravel())
        if not len(audio):
            raise UserError(f"Kokoro makes no sound of {text!r}", "remove that line")
        return resample(audio, RATE, AUDIO_RATE)

    def _ids(self, text: str) -> list[int]:
        """Symbols that the model does not know (stray diacritics) are left out."""
        ipa = " ".join("".join(sentence) for sentence in self._espeak.phonemize("en-us", text))
        ids = [self._vocabulary[symbol] for symbol in respell(ipa) if symbol in self._vocabulary]
        if not ids:
            raise UserError(f"Kokoro finds nothing to say in {text!r}", "remove that line")
        if len(ids) > MAX_SYMBOLS:
            raise UserError(
                f"a line of {len(ids)} sounds is too long for Kokoro ({MAX_SYMBOLS}): {text!r}",
                "write one sentence a line",
            )
        return ids


def _espeak() -> Any:
    try:
        from piper.phonemize_espeak import EspeakPhonemizer
    except ImportError as error:
        raise UserError(
            "Kokoro reads IPA by the eSpeak of piper-tts, which is not installed",
            "pip install 'slm_jax[synthesis]'",
        ) from error
    return EspeakPhonemizer()


def _session(model: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "onnxruntime is not installed", "pip install 'slm_jax[synthesis]'"
        ) from error
    options = onnxruntime.SessionOptions()
    # One thread a process: many voices are read at once, each by a process of its own.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
