"""What TASTE hears: frozen Whisper features of the audio, the words as Whisper's tokens, and the
mels, pitch and text that its own aligner works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.features import (
    WHISPER_HOP,
    WHISPER_RATE,
    MelConfig,
    log_envelope,
    whisper_log_mel,
)
from slm_jax.audio.pitch import PitchConfig, pitch
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.taste_prosody import is_spoken
from slm_jax.tokenizers.taste_text import Pronunciations, Symbols, read_text
from slm_jax.tokenizers.vocoder import fill_pitch, normalise_mel, normalise_pitch
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.tokenizers.whisper_text import WhisperText

CONTEXTS = (8, 16, 30)  # seconds; an utterance is padded to the first that exceeds it by one
RATE = WHISPER_RATE
HOP = 2 * WHISPER_HOP  # samples of one encoder frame
SLACK = 0.12  # seconds that an aligned word boundary may be off
_BATCH = 4


class Heard(NamedTuple):
    """One utterance as the aggregator gets it.

    Attributes:
      keys: float16 [T, D], last encoder layer; T covers the audio alone, at 50 Hz.
      values: float16 [T, L, D], the shallow layers.
      tokens: int32 [S], prompt, the words' tokens, end of text.
      token_words: int32 [S], the word of each token, -1 for prompt and end.
      text: the words as the decoder reads them.
      window: int32 [N, 2], first and past-the-last mel frame that each symbol of it may own.
      mel: float16 [F, n_mels], normalised; F frames as long as the audio.
      pitch: float16 [F], normalised; unvoiced frames are filled.
      voiced: float16 [F], 0 or 1.
    """

    keys: np.ndarray
    values: np.ndarray
    tokens: np.ndarray
    token_words: np.ndarray
    text: Symbols
    window: np.ndarray
    mel: np.ndarray
    pitch: np.ndarray
    voiced: np.ndarray


class Listener:
    """Frozen speech encoder and text tokenizer of one Whisper.

    Args:
      folder: of the checkpoint.
      value_layers: for each stack of values, the encoder layers below it (the paper has one, 6 of
        32).
      mel: the decoder's frames.
      language: of the prompt, for multilingual checkpoints.
    """

    def __init__(
        self,
        folder: Path | str,
        value_layers: tuple[int, ...],
        mel: MelConfig,
        language: str = "en",
    ):
        self.language = language
        self.mel = mel
        whisper = Whisper.load(folder)
        self.config = whisper.config
        self.text = WhisperText(folder, self.config.vocab_size)
        self.decoder = pure_params(whisper.decoder)[1]
        graphdef, self._encoder = pure_params(whisper.encoder)

        def encode(params, audio):
            mel = whisper_log_mel(audio, whisper.config.n_mels)
            last, layers = merge(graphdef, params)(mel)
            values = jnp.stack([layers[layer] for layer in value_layers], axis=2)
            return last.astype(jnp.float16), values.astype(jnp.float16)

        self._encode = jax.jit(encode)
        tones = PitchConfig(rate=mel.rate, hop=mel.hop)

        def analyse(audio):
            hertz, voiced = pitch(audio, tones)
            voiced = voiced.astype(jnp.float32)
            hertz = fill_pitch(hertz, voiced)
            envelope = normalise_mel(log_envelope(audio, hertz, mel))
            return envelope, normalise_pitch(hertz), voiced

        self._analyse = jax.jit(analyse)

    def hear(
        self,
        audios: Sequence[np.ndarray],
        words: Sequence[Sequence[Any]],
        pronunciations: Pronunciations,
    ) -> list[Heard]:
        """Features of mono 16 kHz audio of at most 29 s each, and tokens of its words.

        Args:
          audios: float32 [n] each.
          words: of each, with `text`, and `start` and `end` in seconds.
          pronunciations: by which the decoder reads them.

        The padding depends on an utterance's own length alone: what it is batched with changes
        nothing.

        Raises:
          ValueError: an audio is too long.
        """
        heard: list[Heard | None] = [None] * len(audios)
        contexts = [context(len(audio)) for audio in audios]
        for seconds in CONTEXTS:
            rows = [i for i, c in enumerate(contexts) if c == seconds]
            for start in range(0, len(rows), _BATCH):
                chunk = rows[start : start + _BATCH]
                batch = np.zeros((_BATCH, seconds * WHISPER_RATE), np.float32)
                for row, i in enumerate(chunk):
                    batch[row, : len(audios[i])] = audios[i]
                keys, values = jax.device_get(self._encode(self._encoder, batch))
                mels, tones, voiced = jax.device_get(self._analyse(batch))
                for row, i in enumerate(chunk):
                    frames = max(1, -(-len(audios[i]) // HOP))
                    tokens, index = self.tokens([word.text for word in words[i]])
                    length = len(audios[i]) // self.mel.hop + 1
                    text = read_text([word.text for word in words[i]], pronunciations)
                    window = _windows(text, words[i], length, self.mel.hop / self.mel.rate)
                    shown = (x[row, :length].astype(np.float16) for x in (mels, tones, voiced))
                    heard[i] = Heard(
                        keys[row, :frames],
                        values[row, :frames],
                        tokens,
                        index,
                        text,
                        window,
                        *shown,
                    )
        return heard  # type: ignore[return-value]

    def tokens(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, word of each id): prompt, each word with its leading space, end of text."""
        prompt = self.text.prompt(self.language)
        ids, index = list(prompt), [-1] * len(prompt)
        for w, word in enumerate(words):
            spelled = self.text.encode(" " + word)
            ids += spelled
            index += [w] * len(spelled)
        return np.array([*ids, self.text.end], np.int32), np.array([*index, -1], np.int32)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Token and position embeddings, frozen: int [..., S] -> float32 [..., S, D]."""
        table = self.decoder["embedding"]["embedding"]
        positions = self.decoder["positions"][: ids.shape[-1]]
        return np.asarray(table)[ids] + np.asarray(positions)


def _windows(text: Symbols, words: Sequence[Any], frames: int, frame: float) -> np.ndarray:
    window = np.tile(np.array([0, frames], np.int32), (len(text.ids), 1))
    for n, (symbol, w) in enumerate(zip(text.ids, text.words, strict=True)):
        if is_spoken(symbol):
            window[n] = (words[w].start - SLACK) / frame, (words[w].end + SLACK) / frame + 1
    return np.clip(window, 0, frames)


def context(samples: int) -> int:
    """Seconds that an utterance is padded to: a function of its own length."""
    for seconds in CONTEXTS:
        if samples <= (seconds - 1) * WHISPER_RATE:
            return seconds
    raise ValueError(f"{samples / WHISPER_RATE:.1f} s of audio, at most {CONTEXTS[-1] - 1} s fit")
