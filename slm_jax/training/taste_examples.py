"""Training examples of the TASTE tokenizer: features once, batches by (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.audio.resample import resample
from slm_jax.data.schema import Word
from slm_jax.tokenizers.taste_listen import CONTEXTS, RATE, Heard, Listener
from slm_jax.tokenizers.taste_network import pad_heard
from slm_jax.tokenizers.taste_text import Pronunciations

FRAMES = (192, 320, 512, 768)  # padded lengths; one compilation each


class Example(NamedTuple):
    """One utterance.

    Attributes:
      heard: features of its audio, and its text.
      words: how many.
      audio: float16 samples, (F - 1) * hop of them.
    """

    heard: Heard
    words: int
    audio: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.heard.mel)


def make_examples(
    listener: Listener,
    audios: Sequence[np.ndarray],
    words: Sequence[Sequence[Any]],
    pronunciations: Pronunciations,
) -> list[Example]:
    """Examples from mono 16 kHz audio and words with `text`, `start`, `end`, read by
    `pronunciations`.

    Utterances that do not fit a padded length, or have fewer frames than symbols, are left out.
    """
    limit = min(FRAMES[-1] * listener.mel.hop, (CONTEXTS[-1] - 1) * RATE)
    fit = [i for i, row in enumerate(words) if row and len(audios[i]) < limit]
    heard = listener.hear([audios[i] for i in fit], [words[i] for i in fit], pronunciations)
    examples = []
    for i, h in zip(fit, heard, strict=True):
        if _fits(h, len(words[i])):
            audio = audios[i][: (len(h.mel) - 1) * listener.mel.hop].astype(np.float16)
            examples.append(Example(h, len(words[i]), audio))
    return examples


def _room(frames: int) -> tuple[int, int, int]:
    """Symbols, words and tokens that a batch of a padded length has room for."""
    return frames * 9 // 32, frames // 12, frames // 6


def _fits(heard: Heard, words: int) -> bool:
    return len(heard.text.ids) <= len(heard.mel) and _padded(heard, words) is not None


def _padded(heard: Heard, words: int) -> int | None:
    """The smallest of `FRAMES` with room for an utterance."""
    for frames in FRAMES:
        length, most, tokens = _room(frames)
        inside = len(heard.mel) <= frames and len(heard.text.ids) <= length
        if inside and words <= most and len(heard.tokens) <= tokens:
            return frames
    return None


def draws(examples: Sequence[Example], rows: int, seed: int) -> Callable[[int], list[Example]]:
    """The utterances of a step, of like length; a function of (seed, step)."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].frames)

    def drawn(step: int) -> list[Example]:
        rng = np.random.default_rng((seed, step))
        pivot = int(rng.integers(len(order)))
        near = order[max(0, pivot - 4 * rows) : pivot + 4 * rows]
        picked = rng.choice(len(near), rows, replace=len(near) < rows)
        return [examples[near[i]] for i in picked]

    return drawn


def collate(
    examples: Sequence[Example], listener: Listener, frames: int = 0
) -> dict[str, np.ndarray]:
    """Pads to `frames`, or to the smallest of `FRAMES` that holds all."""
    rows = len(examples)
    frames = frames or max(_padded(e.heard, e.words) for e in examples)
    length, words, tokens = _room(frames)
    batch = pad_heard([e.heard for e in examples], listener, rows, frames, length, tokens)
    batch["word_mask"] = np.zeros((rows, words), np.float32)
    for row, e in enumerate(examples):
        batch["word_mask"][row, : e.words] = 1
    return batch


def samples(examples: Sequence[Example], count: int) -> np.ndarray:
    """Their audio, float32 [B, count], cut or zero padded."""
    audio = np.zeros((len(examples), count), np.float32)
    for row, e in enumerate(examples):
        audio[row, : len(e.audio)] = e.audio[:count]
    return audio


def resampled(
    audio: np.ndarray, words: Sequence[Any], factor: float
) -> tuple[np.ndarray, list[Word]]:
    """The same speech `factor` times as long, its pitch and formants as much lower: another voice,
    as far as a speaker vector is concerned."""
    longer = resample(audio, RATE, round(RATE * factor))
    return longer, [Word(w.text, w.start * factor, w.end * factor) for w in words]
