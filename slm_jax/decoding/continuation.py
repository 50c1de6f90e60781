"""From a spoken or written prompt to spoken words: TASTE in, the speech LM, TASTE out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from slm_jax.data.schema import StreamItem
from slm_jax.decoding.engine import Engine, Request
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.segmenters import segmenter_for
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer, encode_words


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What is to be continued.

    Attributes:
      words: its words.
      codes: int [W, K], their TASTE tokens; None where the prompt was written, not spoken: then
        the model chooses them, and the prompt is spoken with the continuation.
      speaker: float32 [speaker width], the voice to speak with.
    """

    words: tuple[str, ...]
    codes: np.ndarray | None
    speaker: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """What the model said.

    Attributes:
      prompt: what it went on from.
      text: what it wrote after the prompt.
      words: what is spoken: its own words, after those of a written prompt.
      codes: int [W, K], TASTE tokens of `words`.
    """

    prompt: Prompt
    text: str
    words: tuple[str, ...]
    codes: np.ndarray


class Continuer:
    """Continues prompts with an engine whose layout has a text row and the TASTE levels.

    Args:
      engine: of the speech LM.
      tokenizer: of its text row.
      taste: of its speech rows.
      language: of prompts and text.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, taste: Taste, language: str):
        self.taste = taste
        self.language = language
        self.segmenter = segmenter_for(language)
        self._engine = engine
        self._tokenizer = tokenizer
        self._text, self._speech = engine.layout.families

    def use(self, params: Params) -> None:
        """Goes on with other parameters of the same model."""
        self._engine.use(params)

    def hear(self, audios: Sequence[np.ndarray], words: Sequence[Sequence[Any]]) -> list[Prompt]:
        """Spoken prompts: 16 kHz audio, and its words (text, start, end)."""
        codes, speakers = self.taste.encode(audios, words)
        return [
            Prompt(tuple(word.text for word in spoken), ids, speaker)
            for spoken, ids, speaker in zip(words, codes, speakers, strict=True)
        ]

    def read(self, text: str) -> Prompt:
        """A written prompt, in the tokenizer's default voice."""
        return Prompt(tuple(self.segmenter.split(text)), None, self.taste.default_speaker)

    def write(self, prompts: Sequence[Prompt], seed: int = 0) -> list[Continuation]:
        """Continues prompts as text and TASTE tokens."""
        grids = self._engine.generate([self._request(prompt) for prompt in prompts], seed)
        return [
            self._continuation(prompt, self._engine.layout.restore(grid))
            for prompt, grid in zip(prompts, grids, strict=True)
        ]

    def speak(self, continuations: Sequence[Continuation]) -> list[np.ndarray]:
        """16 kHz audio of continuations, in the voice of their prompts."""
        return self.taste.decode(
            [continuation.words for continuation in continuations],
            [continuation.codes for continuation in continuations],
            [continuation.prompt.speaker for continuation in continuations],
        )[0]

    def _request(self, prompt: Prompt) -> Request:
        layout = self._engine.layout
        spoken = prompt.codes is not None
        ids, index = encode_words(self._tokenizer, prompt.words, self.language)
        levels = len(layout.rows) - 1
        codes = prompt.codes if spoken else np.zeros((0, levels), np.int32)
        heard = len(ids) if spoken else 0
        record = {
            self._text: StreamItem(
                "prompt",
                np.array(ids[:heard], np.int32)[:, None],
                np.array(index[:heard], np.int32),
            ),
            self._speech: StreamItem("prompt", codes),
        }
        words = 0 if spoken else len(prompt.words)
        return Request(layout.arrange_prompt(record), codes, text=ids[heard:], text_words=words)

    def _continuation(self, prompt: Prompt, streams: dict[str, Any]) -> Continuation:
        text, codes = streams[self._text], streams[self._speech].values
        words = [
            self._tokenizer.decode(text.values[text.index == word, 0]).strip()
            for word in range(len(codes))
        ]
        given = len(prompt.words)
        begin = given if prompt.codes is not None else 0
        written = self.segmenter.join(words[given:])
        return Continuation(prompt, written, tuple(words[begin:]), codes[begin:])


def reconstruct(
    taste: Taste, audios: Sequence[np.ndarray], words: Sequence[Sequence[Any]]
) -> list[np.ndarray]:
    """Passes 16 kHz audio with known words through the tokenizer and back."""
    codes, speakers = taste.encode(audios, words)
    return taste.decode([[word.text for word in spoken] for spoken in words], codes, speakers)[0]
