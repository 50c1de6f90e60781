"""Training examples of the TASTE tokenizer: features once, batches by (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.audio.features import MelConfig, log_mel
from slm_jax.tokenizers.taste import RATE, pad_heard
from slm_jax.tokenizers.taste_decoder import TextBytes, text_bytes
from slm_jax.tokenizers.taste_listen import Heard, Listener
from slm_jax.tokenizers.vocoder import normalise_mel

SLACK = 0.12  # seconds that an aligned word boundary may be off
FRAMES = (192, 320, 512, 768)  # padded lengths; one compilation each
_SPOKEN_FROM = ord("0")  # bytes below are spaces and punctuation: free to absorb pauses


class Example(NamedTuple):
    """One utterance.

    Attributes:
      heard: what the encoder side gets.
      text: what the decoder side gets.
      words: how many.
      mel: float16 [T, n_mels], normalised.
      window: int32 [N, 2], first and past-the-last frame that each byte may own.
      audio: float32 samples, (T - 1) * hop of them.
    """

    heard: Heard
    text: TextBytes
    words: int
    mel: np.ndarray
    window: np.ndarray
    audio: np.ndarray


def make_examples(
    listener: Listener, audios: Sequence[np.ndarray], words: Sequence[Sequence[Any]], mel: MelConfig
) -> list[Example]:
    """Examples from mono 16 kHz audio and words with `text`, `start`, `end`.

    Utterances that do not fit a padded length, or have fewer frames than bytes, are left out.
    """
    heard = listener.hear(audios, [[w.text for w in row] for row in words])
    examples = []
    for audio, row, h in zip(audios, words, heard, strict=True):
        frames = len(audio) // mel.hop + 1
        text = text_bytes([w.text for w in row])
        if not row or frames > FRAMES[-1] or not _fits(text, h, len(row), frames):
            continue
        spectrum = normalise_mel(log_mel(_padded(audio, mel)[None], mel))[0, :frames]
        window = _windows(text, row, frames, mel.hop / RATE)
        clipped = audio[: (frames - 1) * mel.hop].astype(np.float32)
        spectrum = np.asarray(spectrum, np.float16)
        examples.append(Example(h, text, len(row), spectrum, window, clipped))
    return examples


def _room(frames: int) -> tuple[int, int, int]:
    """Bytes, words and ASR tokens that a batch of a padded length has room for."""
    return frames * 2 // 5, frames // 8, frames // 8 + 8


def _fits(text: TextBytes, heard: Heard, words: int, frames: int) -> bool:
    padded = next(f for f in FRAMES if f >= frames)
    length, most, tokens = _room(padded)
    short = len(text.ids) <= min(length, frames) and words <= most
    return short and len(heard.tokens) <= tokens


def _padded(audio: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Zeros up to the next second, so that few shapes are compiled; mels of the rest are cut."""
    return np.pad(audio, (0, -len(audio) % RATE + mel.n_fft))


def _windows(text: TextBytes, words: Sequence[Any], frames: int, frame: float) -> np.ndarray:
    window = np.tile(np.array([0, frames], np.int32), (len(text.ids), 1))
    for n, (byte, w) in enumerate(zip(text.ids, text.words, strict=True)):
        if byte >= _SPOKEN_FROM:
            window[n] = (words[w].start - SLACK) / frame, (words[w].end + SLACK) / frame + 1
    return np.clip(window, 0, frames)


def batches(
    examples: Sequence[Example], listener: Listener, rows: int, seed: int, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of utterances of like length; batch s is a function of (seed, s)."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].mel))
    step = start
    while True:
        rng = np.random.default_rng((seed, step))
        pivot = int(rng.integers(len(order)))
        near = order[max(0, pivot - 4 * rows) : pivot + 4 * rows]
        picked = rng.choice(len(near), rows, replace=len(near) < rows)
        yield collate([examples[near[i]] for i in picked], listener)
        step += 1


def collate(examples: Sequence[Example], listener: Listener) -> dict[str, np.ndarray]:
    """Pads to the smallest of `FRAMES` that holds all."""
    rows = len(examples)
    hop = len(examples[0].audio) // (len(examples[0].mel) - 1)
    longest = max(len(e.mel) for e in examples)
    frames = next(f for f in FRAMES if f >= longest)
    length, words, tokens = _room(frames)
    heard = pad_heard([e.heard for e in examples], listener, rows, frames * 4 // 5 + 4, tokens)
    batch = {
        "ids": np.zeros((rows, length), np.int32),
        "words": np.zeros((rows, length), np.int32),
        "window": np.zeros((rows, length, 2), np.int32),
        "mel": np.zeros((rows, frames, examples[0].mel.shape[1]), np.float32),
        "frames": np.array([len(e.mel) for e in examples], np.int32),
        "word_mask": np.zeros((rows, words), np.float32),
        "audio": np.zeros((rows, (frames - 1) * hop), np.float32),
    }
    for row, e in enumerate(examples):
        n = len(e.text.ids)
        batch["ids"][row, :n], batch["words"][row, :n] = e.text.ids, e.text.words
        batch["window"][row, :n] = e.window
        batch["mel"][row, : len(e.mel)] = e.mel
        batch["word_mask"][row, : e.words] = 1
        batch["audio"][row, : len(e.audio)] = e.audio
    return batch | heard
