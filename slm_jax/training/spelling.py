"""The tokenizer's first stage: its text stack learns to pronounce from a dictionary, without audio.

A few hours of speech hold a few thousand words; a pronouncing dictionary holds 130,000. Each byte
emits two phones or blanks under CTC (Graves et al. 2006), over random words of the dictionary and
the words of the training transcripts in their order. The output layer is thrown away afterwards.
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

from slm_jax.errors import UserError
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste_decoder import text_bytes
from slm_jax.tokenizers.taste_network import TasteNetwork
from slm_jax.training.fit import FitConfig, fit

_BYTES = 96  # of a line of words
_PHONES = 104
_PER_BYTE = 2

Dictionary = dict[str, tuple[str, ...]]


def read_dictionary(path: Path | str) -> Dictionary:
    """CMUdict's format: `word P H O N E S` a line; other readings of a word, `word(2)`, are left
    out, and so are stress digits.

    Args:
      path: the file, or a folder with one `.dict` file in it.

    Raises:
      UserError: there is no such file, or it has no such lines.
    """
    found: Dictionary = {}
    for line in _dictionary_file(Path(path)).read_text(encoding="utf-8").splitlines():
        word, *phones = line.split() or [""]
        if phones and word.replace("'", "").isalpha():
            found[word.casefold()] = tuple(phone.rstrip("012") for phone in phones)
    if not found:
        raise UserError(f"{path} holds no pronunciations", "give a dictionary in CMUdict's format")
    return found


def _dictionary_file(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.dict"))
    if len(files) != 1:
        raise UserError(
            f"{path} is no pronouncing dictionary", "give a file, or a folder with one .dict file"
        )
    return files[0]


class Lines:
    """Spelled lines of a dictionary and of texts."""

    def __init__(self, dictionary: Dictionary, texts: Sequence[Sequence[str]], seed: int):
        self.phones = sorted({phone for phones in dictionary.values() for phone in phones})
        self._number = {phone: i + 2 for i, phone in enumerate(self.phones)}  # 0 blank, 1 boundary
        self._dictionary = dictionary
        self._words = sorted(dictionary)
        spoken = (
            ["".join(c for c in w.casefold() if c.isalpha() or c == "'") for w in row]
            for row in texts
        )
        known = ([w for w in row if w in dictionary] for row in spoken)
        self._texts = [row for row in known if row]
        self._seed = seed

    @property
    def classes(self) -> int:
        return len(self.phones) + 2

    def batch(self, rows: int, step: int) -> dict[str, np.ndarray]:
        """{"ids" [B, 96], "labels" [B, 104]}, 0 where there is nothing; a function of (seed,
        step)."""
        rng = np.random.default_rng((self._seed, step))
        return self.collate([self._line(rng) for _ in range(rows)])

    def collate(self, lines: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Bytes and phones of lines of words of the dictionary that fit."""
        ids = np.zeros((len(lines), _BYTES), np.int32)
        labels = np.zeros((len(lines), _PHONES), np.int32)
        for row, words in enumerate(lines):
            spelled = text_bytes(words).ids
            said = self.said(words)
            ids[row, : len(spelled)], labels[row, : len(said)] = spelled, said
        return {"ids": ids, "labels": labels}

    def said(self, words: Sequence[str]) -> list[int]:
        """Phone numbers of words, a boundary between them."""
        out: list[int] = []
        for word in words:
            out += [1] if out else []
            out += [self._number[phone] for phone in self._dictionary[word]]
        return out

    def _line(self, rng: np.random.Generator) -> list[str]:
        if self._texts and rng.random() < 0.5:
            words = self._texts[rng.integers(len(self._texts))]
        else:
            words = [self._words[i] for i in rng.integers(len(self._words), size=10)]
        kept: list[str] = []
        for word in words:
            if not self._fits([*kept, word]):
                break
            kept.append(word)
        return kept

    def _fits(self, words: Sequence[str]) -> bool:
        emitted, said = _PER_BYTE * len(text_bytes(words).ids), self.said(words)
        # CTC has a blank between two equal phones; a line without room for it has no finite loss.
        needed = len(said) + sum(a == b for a, b in itertools.pairwise(said))
        return emitted <= _PER_BYTE * _BYTES and len(said) <= _PHONES and needed <= emitted


def make_step(network: TasteNetwork, optimizer: optax.GradientTransformation):
    """(state, batch, key) -> (state, losses), jitted; the state's params are {"decoder", "head"}.

    The loss is nats a phone."""

    def loss(params, batch):
        logits = emissions(network, params, batch["ids"])
        unheard = jnp.repeat(batch["ids"] == 0, _PER_BYTE, axis=1).astype(jnp.float32)
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
    return logits.reshape(ids.shape[0], ids.shape[1] * _PER_BYTE, -1)


def make_optimizer(steps: int, peak_lr: float) -> optax.GradientTransformation:
    """AdamW with one cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, peak_lr, min(100, steps // 10), steps, 0.05 * peak_lr
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def make_head(network: TasteNetwork, lines: Lines, seed: int) -> jax.Array:
    """The output layer [text_width, 2 * classes] at its start."""
    width = network.config.decoder.text_width
    return 0.02 * jax.random.normal(jax.random.key(seed), (width, _PER_BYTE * lines.classes))


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
    params = {"decoder": decoder, "head": make_head(network, lines, seed)}
    state: dict[str, Any] = {"params": params, "opt": optimizer.init(params)}
    step = make_step(network, optimizer)
    state = fit(run_dir, "spelling", schedule, state, step, lambda s: lines.batch(rows, s), seed)
    return state["params"]["decoder"]
