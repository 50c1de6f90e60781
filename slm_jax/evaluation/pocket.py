"""PocketSphinx: a recogniser and forced aligner that shares nothing with Whisper or with TASTE.

Both use the en-US model that comes with the package (Huggins-Daines et al. 2006, ICASSP). Each
recording is normalised by its own cepstral mean, so results do not depend on the order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError
from slm_jax.tokenizers.taste_text import spell_numerals

try:
    import pocketsphinx
except ImportError as missing:
    raise UserError(
        "pocketsphinx, the independent aligner and recogniser, is not installed",
        "pip install 'slm_jax[eval]'",
    ) from missing

FRAME = 0.01  # seconds; times are whole frames
Times: TypeAlias = tuple[float, float] | None

_SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "@": " at ", "#": " pound "}
_PART = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

# What a word that the dictionary lacks is taken to sound like, so that its neighbours can be
# aligned; it is not judged itself. Longer spellings first.
_SOUNDS = {
    **{"tion": "SH AH N", "sch": "SH", "igh": "AY", "ch": "CH", "sh": "SH", "th": "TH"},
    **{"ph": "F", "ck": "K", "ng": "NG", "qu": "K W", "ee": "IY", "ea": "IY", "oo": "UW"},
    **{"ou": "AW", "ow": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "ei": "AY"},
    **{"ey": "IY", "ie": "IY", "au": "AO", "aw": "AO", "er": "ER", "ir": "ER", "ur": "ER"},
    **{"a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH"},
    **{"i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P"},
    **{"q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S"},
    **{"y": "IY", "z": "Z"},
}
_SPELLING = re.compile("|".join(_SOUNDS))


class PocketSphinx:
    """Aligns and transcribes English speech."""

    def __init__(self):
        settings = {"cmn": "batch", "loglevel": "FATAL", "samprate": AUDIO_RATE}
        # At the default of 0.005 short pauses fall to the words beside them, and a shift of the
        # recording by 2 ms changes 2.3 % of the words by more than 50 ms; at 0.5, 0.3 %.
        self._aligner = pocketsphinx.Decoder(lm=None, silprob=0.5, **settings)
        self._recogniser = pocketsphinx.Decoder(**settings)
        self._guessed: set[str] = set()

    def transcribe(self, audios: Sequence[np.ndarray]) -> list[str]:
        """What is said, by the general trigram model. It hears words in silence, too.

        Args:
          audios: float32 [n] each, 16 kHz mono.
        """
        return [self._hear(audio) for audio in audios]

    def align(self, audio: np.ndarray, words: Sequence[str]) -> list[Times]:
        """Puts known words on the time axis.

        Numerals are read out, other punctuation and case ignored; silence between words belongs
        to none of them.

        Args:
          audio: float32 [n], 16 kHz mono.
          words: what is said, in order.

        Returns:
          (start, end) in seconds of each word, whole centiseconds; None for a word that the
          pronouncing dictionary lacks, and for all words if they do not fit the audio.
        """
        parts = [_parts(word) for word in words]
        unknown = [any(self._pronounce(p) for p in spoken) for spoken in parts]
        segments = self._segments(audio, [p for spoken in parts for p in spoken])
        if not segments:
            return [None] * len(words)
        times, at = [], 0
        for spoken, guessed in zip(parts, unknown, strict=True):
            own = segments[at : at + len(spoken)]
            at += len(spoken)
            judged = own and not guessed
            # A segment's last frame is its own.
            span = (own[0].start_frame * FRAME, (own[-1].end_frame + 1) * FRAME) if judged else None
            times.append(span)
        return times

    def phones(self, audio: np.ndarray, words: Sequence[str]) -> list[tuple[str, float, float]]:
        """Puts the phones of known words on the time axis.

        Args:
          audio: float32 [n], 16 kHz mono.
          words: what is said, in order.

        Returns:
          (ARPAbet phone, start, end) in seconds, in order; silence is left out, and so are words
          that the dictionary lacks. Empty if the words do not fit the audio.
        """
        flat = [p for word in words for p in _parts(word)]
        guessed = {part for part in flat if self._pronounce(part)}
        if not self._segments(audio, flat):
            return []
        # The second pass finds the phones of the words that the first one has placed.
        self._aligner.set_alignment()
        try:
            _process(self._aligner, audio)
        except RuntimeError:  # it reached no end of the last phone
            return []
        return [
            (phone.name, phone.start * FRAME, (phone.start + phone.duration) * FRAME)
            for word in self._aligner.get_alignment() or ()
            if word.name[0] not in "<[" and word.name.partition("(")[0] not in guessed
            for phone in word
        ]

    def _segments(self, audio: np.ndarray, flat: Sequence[str]) -> list[Any]:
        """The aligner's words without its silences; none if they are not those given."""
        if not flat or not len(audio):
            return []
        self._aligner.set_align_text(" ".join(flat))
        _process(self._aligner, audio)
        segments = [s for s in self._aligner.seg() or () if s.word[0] not in "<["]
        fits = [s.word.partition("(")[0] for s in segments] == list(flat)
        return segments if fits else []

    def _hear(self, audio: np.ndarray) -> str:
        if not len(audio):
            return ""
        _process(self._recogniser, audio)
        found = self._recogniser.hyp()
        return found.hypstr if found else ""

    def _pronounce(self, part: str) -> bool:
        """Whether the pronunciation is a guess; afterwards the aligner has one in any case."""
        if part not in self._guessed and self._aligner.lookup_word(part) is None:
            phones = " ".join(_SOUNDS[s] for s in _SPELLING.findall(part)) or "AH"
            self._aligner.add_word(part, phones, True)
            self._guessed.add(part)
        return part in self._guessed


def _parts(word: str) -> list[str]:
    """The dictionary's words in a written one: "twenty-5%" is twenty, five, percent."""
    text = "".join(_SYMBOLS.get(c, c) for c in word.casefold().replace("’", "'"))
    return _PART.findall(spell_numerals(text))


def _process(decoder: pocketsphinx.Decoder, audio: np.ndarray) -> None:
    pcm = np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
    decoder.start_utt()
    decoder.process_raw(pcm, no_search=False, full_utt=True)
    decoder.end_utt()
