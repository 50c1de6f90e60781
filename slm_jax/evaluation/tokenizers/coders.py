"""What tokenizers make of audio, one interface for all: codes, or vectors to compare them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.audio.features import WHISPER_HOP, whisper_log_mel
from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE, Word
from slm_jax.streams import WORD
from slm_jax.tokenizers.spoken_units import Units
from slm_jax.tokenizers.taste_listen import HOP
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.taste_tokenizer import TasteTokenizer
from slm_jax.tokenizers.tokenizer import Tokenizer
from slm_jax.tokenizers.unit_encoder import UnitEncoder

_LENGTHS = (2, 4, 8, 16, 32)  # seconds that audio is padded to; one compilation each
_STACKED = HOP // WHISPER_HOP  # mel frames in one of an encoder


class Coded(NamedTuple):
    """What was made of an utterance.

    Attributes:
      values: codes int [T, K], coarse level first, or vectors float [T, D].
      times: float [T], the middle of each in seconds.
    """

    values: np.ndarray
    times: np.ndarray


@dataclasses.dataclass(frozen=True)
class Coder:
    """A tokenizer, or a continuous front end.

    Attributes:
      encode: audio float32 [n] at 16 kHz to what is made of it; None where that fails.
      vocab: codes per level; () for vectors.
      clock: frames a second, or WORD.
      identity: fingerprint; equal for equal results.
    """

    encode: Callable[[np.ndarray], Coded | None]
    vocab: tuple[int, ...]
    clock: float | str
    identity: str


def frame_coder(tokenizer: Tokenizer | Units) -> Coder:
    """The codes of a tokenizer that has frames, all levels."""
    spec = tokenizer.spec

    def encode(audio: np.ndarray) -> Coded:
        codes, frames, *_ = codes_of(tokenizer, resample(audio, AUDIO_RATE, tokenizer.sample_rate))
        return on_frames(np.asarray(codes)[0, : int(frames[0])], spec.clock)

    return Coder(encode, spec.vocab, spec.clock, spec.fingerprint)


def codes_of(tokenizer: Tokenizer | Units, audio: np.ndarray) -> tuple[Any, ...]:
    """What the tokenizer encodes one recording [n] at its rate into, padded to one of a few
    lengths: codes [1, T, K], frames [1] and what else there is."""
    rate = tokenizer.sample_rate
    room = next((s * rate for s in _LENGTHS if s * rate >= len(audio)), len(audio))
    padded = np.pad(audio, (0, room - len(audio)))[None]
    return tokenizer.encode(padded, np.array([len(audio)]))


def taste_coder(tokenizer: TasteTokenizer) -> Coder:
    """The codes of TASTE, one item for each word that its ASR hears; no words, no codes."""

    def encode(audio: np.ndarray) -> Coded | None:
        [codes], _, _, [words] = tokenizer.encode(audio[None], np.array([len(audio)]))
        return on_words(codes, words) if words else None

    return Coder(encode, tokenizer.spec.vocab, WORD, tokenizer.spec.fingerprint)


def features_coder(encoder: UnitEncoder) -> Coder:
    """The features that units are made of, at 50 Hz."""
    clock = AUDIO_RATE / HOP
    return Coder(lambda audio: on_frames(encoder.features(audio), clock), (), clock, encoder.source)


def mel_coder() -> Coder:
    """Whisper's log-mel, two frames of 10 ms side by side: [T, 160] at 50 Hz."""
    clock = AUDIO_RATE / HOP

    def encode(audio: np.ndarray) -> Coded:
        padded = np.pad(audio, (0, bucket(len(audio), AUDIO_RATE) - len(audio)))
        mel = np.asarray(whisper_log_mel(padded[None]))[0].T
        stacked = mel.reshape(len(mel) // _STACKED, -1)
        return on_frames(stacked[: -(-len(audio) // HOP)], clock)

    return Coder(encode, (), clock, "whisper-log-mel-80x2")


def on_frames(values: np.ndarray, clock: float) -> Coded:
    """Items [T, ...] of a frame each, at `clock` Hz."""
    return Coded(values, (np.arange(len(values)) + 0.5) / clock)


def on_words(values: np.ndarray, words: Sequence[Word]) -> Coded:
    """Items [W, ...] of a word each."""
    return Coded(values, np.array([(word.start + word.end) / 2 for word in words]))
