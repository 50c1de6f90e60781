"""What a speech LM must beat: codes predicted without context, and from their word alone.

Both predictors are fitted on the train split and scored on the held-out codes that the model is
scored on. Every smoothing constant is tuned by leave-one-out likelihood on the train split, so
neither is weak by neglect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

_GRID = np.geomspace(1e-2, 1e4, 25)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats per code, coarse level first.

    Attributes:
      unigram: of P(code), additively smoothed.
      given_word: of P(code | word), backing off from the word as written to the word without case
        and punctuation to P(code), each step by Dirichlet interpolation (MacKay and Peto 1995).
      count: words scored; every level has one code a word.
    """

    unigram: tuple[float, ...]
    given_word: tuple[float, ...]
    count: int


class CodeModel:
    """P(code) and P(code | word) of one codebook level.

    Args:
      words: the word of every training code.
      codes: int [n].
      vocab: number of codes.
    """

    def __init__(self, words: Sequence[str], codes: np.ndarray, vocab: int):
        self._vocab = vocab
        self._ids: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for word in words:
            for ids, form in zip(self._ids, _forms(word), strict=True):
                ids.setdefault(form, len(ids))
        contexts = self._contexts(words)
        self._unigram = np.bincount(codes, minlength=vocab)
        self._joint = [
            np.zeros((len(ids), vocab), np.int64) for ids in self._ids
        ]  # [plain, written] counts [word, code]
        for joint, context in zip(self._joint, contexts, strict=True):
            np.add.at(joint, (context, codes), 1)

        # Leave one out: each training code is predicted from all the others.
        flat = np.stack([*contexts, codes])
        triples, times = np.unique(flat, axis=1, return_counts=True)
        plain, written, code = triples

        def tune(predict: Callable[[float], np.ndarray]) -> float:
            losses = [-(times * np.log(predict(value))).sum() for value in _GRID]
            return float(_GRID[int(np.argmin(losses))])

        total = len(codes)
        self._alpha = tune(lambda a: self._additive(self._unigram[code] - 1, total - 1, a))
        lower = self._additive(self._unigram[code] - 1, total - 1, self._alpha)
        self._betas = []
        for joint, context in zip(self._joint, (plain, written), strict=True):
            seen, size = joint[context, code] - 1, joint.sum(1)[context] - 1
            beta = tune(lambda b, s=seen, n=size, low=lower: _interpolate(s, n, low, b))
            self._betas.append(beta)
            lower = _interpolate(seen, size, lower, beta)

    def unigram(self, codes: np.ndarray) -> np.ndarray:
        """P(code) for int [n] -> float [n]."""
        return self._additive(self._unigram[codes], self._unigram.sum(), self._alpha)

    def given_word(self, words: Sequence[str], codes: np.ndarray) -> np.ndarray:
        """P(code | word), pairwise -> float [n]."""
        lower = self.unigram(codes)
        for joint, context, beta in zip(
            self._joint, self._contexts(words), self._betas, strict=True
        ):
            known = context >= 0
            seen = np.where(known, joint[context, codes], 0)
            size = np.where(known, joint.sum(1)[context], 0)
            lower = _interpolate(seen, size, lower, beta)
        return lower

    def _contexts(self, words: Sequence[str]) -> list[np.ndarray]:
        forms = [_forms(word) for word in words]
        return [
            np.array([ids.get(form[i], -1) for form in forms], np.int64)
            for i, ids in enumerate(self._ids)
        ]

    def _additive(self, seen: np.ndarray, total: int, alpha: float) -> np.ndarray:
        return (seen + alpha) / (total + alpha * self._vocab)


def _interpolate(seen, size, lower, beta):
    return (seen + beta * lower) / (size + beta)


def _forms(word: str) -> tuple[str, str]:
    """The word without case and punctuation, and as written."""
    plain = "".join(c for c in word.lower() if c.isalnum())
    return plain, word


Spoken = Sequence[tuple[Sequence[str], np.ndarray]]  # utterances: words, codes int [words, levels]


def evaluate(train: Spoken, held_out: Spoken, vocab: Sequence[int]) -> Scores:
    """Fits on `train`, scores `held_out`: every code of every word of it.

    Args:
      train, held_out: utterances as (words, codes [words, levels]).
      vocab: codes per level.

    Raises:
      ValueError: an utterance has another number of words than of codes, or a split is empty.
    """
    train_words, train_codes = _concatenate(train, len(vocab))
    words, codes = _concatenate(held_out, len(vocab))
    unigram, given_word = [], []
    for level, size in enumerate(vocab):
        model = CodeModel(train_words, train_codes[:, level], size)
        unigram.append(-float(np.log(model.unigram(codes[:, level])).mean()))
        given_word.append(-float(np.log(model.given_word(words, codes[:, level])).mean()))
    return Scores(tuple(unigram), tuple(given_word), len(words))


def _concatenate(utterances: Spoken, levels: int) -> tuple[list[str], np.ndarray]:
    if not utterances:
        raise ValueError("no utterance to fit or score a baseline on")
    for words, codes in utterances:
        if codes.shape != (len(words), levels):
            raise ValueError(f"{len(words)} words but codes of shape {codes.shape}")
    all_words = [word for words, _ in utterances for word in words]
    return all_words, np.concatenate([codes for _, codes in utterances])
