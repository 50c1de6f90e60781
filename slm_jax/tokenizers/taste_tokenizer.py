"""TASTE from audio alone, as a `Tokenizer`: an ASR finds the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slm_jax.data.schema import Word
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.taste_listen import RATE
from slm_jax.tokenizers.tokenizer import stack


class TasteTokenizer:
    """TASTE tokens of the words that an ASR hears. A code says how its word is said, so that words
    and a speaker vector go along; a row without words has no codes, and comes back empty.

    It does not stream: the tokenizer hears an utterance whole, up to 29 s (`spec.lookahead`) and
    else cut between words.
    """

    sample_rate, delay = RATE, 0

    def __init__(self, taste: Taste, asr: Asr):
        self._taste, self._asr = taste, asr
        self.spec = taste.spec

    def encode(
        self, audio: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[Word, ...]]]:
        """See `Tokenizer.encode`: codes int32 [B, W, K], words of each row int32 [B], speaker
        vectors float32 [B, E], and the words with their times."""
        rows = [row[:n] for row, n in zip(np.asarray(audio), lengths, strict=True)]
        heard = [tuple(transcript.words) for transcript in self._asr.transcribe(rows)]
        codes = [np.zeros((0, self.spec.levels), np.int32)] * len(rows)
        speakers = np.tile(self._taste.default_speaker, (len(rows), 1))
        told = [i for i, words in enumerate(heard) if words]
        found = self._taste.encode([rows[i] for i in told], [heard[i] for i in told])
        for i, code, speaker in zip(told, *found, strict=True):
            codes[i], speakers[i] = code, speaker
        return *stack(codes, np.int32), speakers, heard

    def decode(
        self, codes: Any, frames: Any, speakers: np.ndarray, words: Sequence[Sequence[Word]]
    ) -> np.ndarray:
        """What `encode` gives -> float32 [B, n]; 0 behind a row's end. Times are not looked at."""
        audios = [np.zeros(0, np.float32)] * len(words)
        told = [i for i, spoken in enumerate(words) if spoken]
        said, _ = self._taste.decode(
            [[word.text for word in words[i]] for i in told],
            [np.asarray(codes[i])[: frames[i]] for i in told],
            [speakers[i] for i in told],
        )
        for i, audio in zip(told, said, strict=True):
            audios[i] = audio
        return stack(audios, np.float32)[0]
