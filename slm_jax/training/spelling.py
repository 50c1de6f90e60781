"""The tokenizer's first stage: its text stack learns to pronounce from a dictionary, without audio.

A few hours of speech hold a few thousand words; a pronouncing dictionary holds 126,000. Each symbol
emits two phones or blanks under CTC (Graves et al. 2006), over random words of the dictionary and
the words of the training transcripts in their order. Half of the words come as phones, as the
dictionary has them, so that a letter's state comes to say what a phone's does. The output layer is
thrown away afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste_network import TasteNetwork
from slm_jax.tokenizers.taste_text import PHONES, Pronunciations, read_text
from slm_jax.training.fit import FitConfig, fit

_SYMBOLS = 96  # of a line of words
_PHONES = 104
_PER_SYMBOL = 2
_CLASSES = len(PHONES) + 2

Line = tuple[list[str], Pronunciations]  # words, and those of them that come as phones


class Lines:
    """Lines of words of a dictionary and of texts, spelled or as phones."""

    def __init__(self, dictionary: Pronunciations, texts: Sequence[Sequence[str]], seed: int):
        self._number = {phone: i + 2 for i, phone in enumerate(PHONES)}  # 0 blank, 1 boundary
        self._dictionary = dictionary
        self._words = sorted(dictionary)
        spoken = (
            ["".join(c for c in w.casefold() if c.isalpha() or c == "'") for w in row]
            for row in texts
        )
        known = ([w for w in row if w in dictionary] for row in spoken)
        self._texts = [row for row in known if row]
        self._seed = seed

    def batch(self, rows: int, step: int) -> dict[str, np.ndarray]:
        """{"ids" [B, 96], "labels" [B, 104]}, 0 where there is nothing; a function of (seed,
        step)."""
        rng = np.random.default_rng((self._seed, step))
        return self.collate([self._line(rng) for _ in range(rows)])

    def collate(self, lines: Sequence[Line]) -> dict[str, np.ndarray]:
        """Symbols and phones of lines of words of the dictionary that fit."""
        ids = np.zeros((len(lines), _SYMBOLS), np.int32)
        labels = np.zeros((len(lines), _PHONES), np.int32)
        for row, line in enumerate(lines):
            read, said = read_text(*line).ids, self.said(line[0])
            ids[row, : len(read)], labels[row, : len(said)] = read, said
        return {"ids": ids, "labels": labels}

    def said(self, words: Sequence[str]) -> list[int]:
        """Phone numbers of words, a boundary between them."""
        out: list[int] = []
        for word in words:
            out += [1] if out else []
            out += [self._number[phone] for phone in self._dictionary[word]]
        return out

    def _line(self, rng: np.random.Generator) -> Line:
        if self._texts and rng.random() < 0.5:
            words = self._texts[rng.integers(len(self._texts))]
        else:
            words = [self._words[i] for i in rng.integers(len(self._words), size=10)]
        kinds = dict.fromkeys(words)
        given = {word: self._dictionary[word] for word in kinds if rng.random() < 0.5}
        kept: list[str] = []
        for word in words:
            if not self._fits(([*kept, word], given)):
                break
            kept.append(word)
        return kept, given

    def _fits(self, line: Line) -> bool:
        symbols, said = len(read_text(*line).ids), self.said(line[0])
        # CTC has a blank between two equal phones; a line without room for it has no finite loss.
        needed = len(said) + sum(a == b for a, b in itertools.pairwise(said))
        return symbols <= _SYMBOLS and len(said) <= _PHONES and needed <= _PER_SYMBOL * symbols


def make_step(network: TasteNetwork, optimizer: optax.GradientTransformation):
    """(state, batch, key) -> (state, losses), jitted; the state's params are {"decoder", "head"}.

    The loss is nats a phone."""

    def loss(params, batch):
        logits = emissions(network, params, batch["ids"])
        unheard = jnp.repeat(batch["ids"] == 0, _PER_SYMBOL, axis=1).astype(jnp.float32)
        padding = (batch["labels"] == 0).astype(jnp.float32)
        lost = optax.ctc_loss(logits, unheard, batch["labels"], padding)
        return jnp.sum(lost) / jnp.sum(1 - padding)

    @jax.jit
    def step(state, batch, key):
        del key
        value, grads = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, {"ctc": value}

    return step


def emissions(network: TasteNetwork, params: Params, ids: jax.Array) -> jax.Array:
    """ids [B, N] -> logits [B, 2 N, classes]."""
    speaker = jnp.zeros((ids.shape[0], network.config.speaker_width))
    hidden, _ = network.part(params, "decoder").read(ids, speaker)
    logits = hidden @ params["head"]
    return logits.reshape(ids.shape[0], ids.shape[1] * _PER_SYMBOL, -1)


def make_optimizer(steps: int, peak_lr: float) -> optax.GradientTransformation:
    """AdamW with one cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, peak_lr, min(100, steps // 10), steps, 0.05 * peak_lr
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def make_head(network: TasteNetwork, seed: int) -> jax.Array:
    """The output layer [text_width, 2 * classes] at its start."""
    width = network.config.decoder.text_width
    return 0.02 * jax.random.normal(jax.random.key(seed), (width, _PER_SYMBOL * _CLASSES))


def learn_to_spell(
    run_dir: Path,
    network: TasteNetwork,
    decoder: Params,
    lines: Lines,
    schedule: FitConfig,
    *,
    rows: int,
    peak_lr: float,
    seed: int,
) -> Params:
    """Trains (or resumes) on `lines`; returns the decoder's parameters."""
    optimizer = make_optimizer(schedule.steps, peak_lr)
    params = {"decoder": decoder, "head": make_head(network, seed)}
    state: dict[str, Any] = {"params": params, "opt": optimizer.init(params)}
    step = make_step(network, optimizer)
    state = fit(run_dir, "spelling", schedule, state, step, lambda s: lines.batch(rows, s), seed)
    return state["params"]["decoder"]
