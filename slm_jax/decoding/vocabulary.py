"""Which ids of a text LLM can be spoken, and which begin a word."""

from __future__ import annotations

import dataclasses
import unicodedata

import numpy as np

from slm_jax.layouts import Layout, word_starts
from slm_jax.tokenizers.text import TextTokenizer

_PUNCTUATION = ",.?!;:'’-"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over the ids of a layout's text row.

    Attributes:
      starts: bool [V], the id begins a word; true for EOS.
      spoken: bool [V], the id may be written: EOS, or part of a word that can be said. That is
        letters, and punctuation other than at a word's begin; no digits (numbers are spelled out),
        no symbols, no white space, no part of a character, no other special id.
      eos: the id that ends the text.
    """

    starts: np.ndarray
    spoken: np.ndarray
    eos: int

    @classmethod
    def of(cls, tokenizer: TextTokenizer, layout: Layout) -> Vocabulary:
        """Reads the tables off a tokenizer; ids that only the text row has are never written."""
        text = layout.rows[0]
        starts = np.zeros(text.vocab, bool)
        starts[: tokenizer.vocab_size] = word_starts(tokenizer.pieces, text.pad)
        spoken = np.zeros(text.vocab, bool)
        for id in range(tokenizer.vocab_size):
            spoken[id] = _is_spoken(tokenizer.decode([id]), bool(starts[id]))
        spoken[text.pad] = True  # after its last item the text row has EOS
        return cls(starts, spoken, text.pad)


def _is_spoken(text: str, starts: bool) -> bool:
    text = text.removeprefix(" ") if starts else text
    kinds = [unicodedata.category(c)[0] for c in text]
    sound = kinds[:1] == ["L"] if starts else text != ""
    return sound and all(
        kind in "LM" or c in _PUNCTUATION for c, kind in zip(text, kinds, strict=True)
    )
