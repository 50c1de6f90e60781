"""What TASTE hears: frozen Whisper features of the audio, and the words as Whisper's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.features import WHISPER_HOP, WHISPER_RATE, whisper_log_mel
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.tokenizers.whisper_text import WhisperText

CONTEXTS = (8, 16, 30)  # seconds; an utterance is padded to the first that exceeds it by one
HOP = 2 * WHISPER_HOP  # samples of one encoder frame
_BATCH = 4


class Heard(NamedTuple):
    """One utterance as the aggregator gets it.

    Attributes:
      keys: float16 [T, D], last encoder layer; T covers the audio alone, at 50 Hz.
      values: float16 [T, D], the shallow layer.
      tokens: int32 [S], prompt, the words' tokens, end of text.
      token_words: int32 [S], the word of each token, -1 for prompt and end.
    """

    keys: np.ndarray
    values: np.ndarray
    tokens: np.ndarray
    token_words: np.ndarray


class Listener:
    """Frozen speech encoder and text tokenizer of one Whisper.

    Args:
      folder: of the checkpoint.
      value_layer: encoder layers below the values (the paper picks 6 of 32).
      language: of the prompt, for multilingual checkpoints.
    """

    def __init__(self, folder: Path | str, value_layer: int, language: str = "en"):
        self.language = language
        whisper = Whisper.load(folder)
        self.config = whisper.config
        self.text = WhisperText(folder, self.config.vocab_size)
        self.decoder = pure_params(whisper.decoder)[1]
        graphdef, self._encoder = pure_params(whisper.encoder)

        def encode(params, audio):
            mel = whisper_log_mel(audio, whisper.config.n_mels)
            last, layers = merge(graphdef, params)(mel)
            return last.astype(jnp.float16), layers[value_layer].astype(jnp.float16)

        self._encode = jax.jit(encode)

    def hear(self, audios: Sequence[np.ndarray], words: Sequence[Sequence[str]]) -> list[Heard]:
        """Features of mono 16 kHz audio of at most 29 s each, and tokens of its words.

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
                for row, i in enumerate(chunk):
                    frames = max(1, -(-len(audios[i]) // HOP))
                    tokens, index = self.tokens(words[i])
                    heard[i] = Heard(keys[row, :frames], values[row, :frames], tokens, index)
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


def context(samples: int) -> int:
    """Seconds that an utterance is padded to: a function of its own length."""
    for seconds in CONTEXTS:
        if samples <= (seconds - 1) * WHISPER_RATE:
            return seconds
    raise ValueError(f"{samples / WHISPER_RATE:.1f} s of audio, at most {CONTEXTS[-1] - 1} s fit")
