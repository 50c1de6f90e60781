"""Trains the probes of a coder and says what they got right on held-out speech."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rapidfuzz.distance import Levenshtein

from slm_jax.evaluation import wer
from slm_jax.evaluation.bootstrap import Figure, ratio
from slm_jax.evaluation.tokenizers.coders import Coded, Coder
from slm_jax.evaluation.tokenizers.probe_models import CodeEntry, Head, Probe
from slm_jax.evaluation.tokenizers.tasks import LETTERS, Example, Task
from slm_jax.nn.layers import Linear
from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.taste_network import bucket

_POSITIONS = 50.0  # a second that letters are written at, about, or more
_SIZES = 32  # items that batches are padded to a multiple of
_BATCH = 32  # examples asked about at once

Rows = tuple[np.ndarray, np.ndarray]  # values [B, T, ...] and lengths [B]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a probe learns; it always takes all of its steps.

    Attributes:
      width: of the network.
      steps, spelling_steps: for a class, for letters.
      batch: examples a step.
      rate: of Adam at the start; it falls to 0 along a cosine.
      seed: of weights, order and dropout.
    """

    width: int = 64
    steps: int = 300
    spelling_steps: int = 1000
    batch: int = 16
    rate: float = 2e-3
    seed: int = 0


class _Cut(NamedTuple):
    """An example as the probe gets it."""

    values: np.ndarray  # [T, K] codes or [T, W] vectors
    answer: str


def probe(
    task: Task,
    head: Head,
    coder: Coder,
    train: Sequence[Coded | None],
    held_out: Sequence[Coded | None],
    budget: Budget,
) -> dict[str, Figure | None]:
    """Trains a probe and asks it.

    Args:
      task: what is asked; its rows are those of `train` and `held_out`.
      head: of the probe.
      coder: that made them.
      train, held_out: what was made of each utterance; None is left out.
      budget: how it learns.

    Returns:
      {"accuracy"} of a task with classes, {"wer", "cer"} of the one without; None where nothing is
      left to learn from or to be asked about.
    """
    learn, ask = _cut(task.train, train), _cut(task.held_out, held_out)
    positions = 0 if task.classes else _positions(train)
    if positions:
        learn = [one for one in learn if _needed(one.answer) <= positions * len(one.values)]
    if not learn or not ask:
        return _score(task, [], [])
    if not coder.vocab:
        learn, ask = _standardise(learn, learn), _standardise(ask, learn)
    said = _say(task, _fit(task, head, coder.vocab, positions, learn, budget), positions, ask)
    return _score(task, [one.answer for one in ask], said)


def baseline(task: Task) -> dict[str, Figure | None]:
    """What a probe gets that hears nothing: it says the most frequent class, or no letters."""
    answers = [example.answer for example in task.train]
    usual = max(task.classes, key=answers.count) if task.classes else ""
    asked = [example.answer for example in task.held_out]
    return _score(task, asked, [usual] * len(asked))


def _cut(examples: Sequence[Example], coded: Sequence[Coded | None]) -> list[_Cut]:
    """The items of each example, or the one nearest to its middle where it is too short for any."""
    found = []
    for row, start, end, answer in examples:
        if (one := coded[row]) is None or not len(one.values):
            continue
        inside = (one.times >= start) & (one.times < end)
        if not inside.any():
            inside = [np.argmin(np.abs(one.times - (start + end) / 2))]
        found.append(_Cut(one.values[inside], answer))
    return found


def _standardise(some: list[_Cut], of: list[_Cut]) -> list[_Cut]:
    """Vectors with the mean taken off and divided by the deviation of those of `of`."""
    frames = np.concatenate([one.values for one in of])
    mean = frames.mean(0, dtype=np.float64)
    deviation = np.maximum(frames.std(0, dtype=np.float64), 1e-5)
    return [
        one._replace(values=((one.values - mean) / deviation).astype(np.float32)) for one in some
    ]


def _positions(coded: Sequence[Coded | None]) -> int:
    """Positions for letters in each item, so that there are enough a second."""
    some = [one.times for one in coded if one is not None and len(one.times)]
    seconds, items = sum(float(times[-1]) for times in some), sum(map(len, some))
    return max(1, math.ceil(_POSITIONS * seconds / max(items, 1)))


def _fit(
    task: Task,
    head: Head,
    vocab: tuple[int, ...],
    positions: int,
    learn: list[_Cut],
    budget: Budget,
) -> Callable[[Rows], np.ndarray]:
    """Trains on `learn`; returns what gives logits."""
    spelled, width, rngs = not task.classes, budget.width, nnx.Rngs(budget.seed)
    if vocab:
        entry = CodeEntry(vocab, width, rngs=rngs)
    else:
        entry = Linear(learn[0].values.shape[1], width, rngs=rngs, bias=True)
    outputs = len(LETTERS) + 1 if spelled else len(task.classes)
    graphdef, params = pure_params(Probe(entry, width, head, outputs, positions, rngs=rngs))
    steps = budget.spelling_steps if spelled else budget.steps
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(budget.rate, steps))
    )
    loss = _spelling_loss if spelled else _class_loss

    @jax.jit
    def step(params: Params, opt, values, lengths, labels, key):
        def lost(params):
            return loss(merge(graphdef, params)(values, lengths, key), lengths * positions, labels)

        updates, opt = optimizer.update(jax.grad(lost)(params), opt)
        return optax.apply_updates(params, updates), opt

    labels = _labels(task, learn)
    size = bucket(max(len(one.values) for one in learn), _SIZES)
    opt, key = optimizer.init(params), jax.random.key(budget.seed)
    rng = np.random.default_rng(budget.seed)
    order = np.concatenate(
        [rng.permutation(len(learn)) for _ in range(-(-steps * budget.batch // len(learn)))]
    )
    for number in range(steps):
        rows = order[number * budget.batch : (number + 1) * budget.batch]
        values, lengths = _pad([learn[i] for i in rows], size)
        dropped = jax.random.fold_in(key, number)
        params, opt = step(params, opt, values, lengths, labels[rows], dropped)
    forward = jax.jit(lambda params, *rows: merge(graphdef, params)(*rows))
    return lambda rows: np.asarray(forward(params, *rows))


def _class_loss(logits: jax.Array, lengths: jax.Array, labels: jax.Array) -> jax.Array:
    del lengths
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _spelling_loss(logits: jax.Array, lengths: jax.Array, labels: jax.Array) -> jax.Array:
    """CTC, nats a letter; blank and padding of `labels` are 0."""
    outside = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    padding = (labels == 0).astype(jnp.float32)
    return optax.ctc_loss(logits, outside, labels, padding).sum() / (1 - padding).sum()


def _needed(text: str) -> int:
    """Positions that CTC needs: a blank between two equal letters."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


def _labels(task: Task, learn: list[_Cut]) -> np.ndarray:
    """int [n] of classes, or int [n, L] of letters, 0 after the end."""
    if task.classes:
        return np.array([task.classes.index(one.answer) for one in learn])
    labels = np.zeros((len(learn), max(len(one.answer) for one in learn)), np.int32)
    for row, one in enumerate(learn):
        labels[row, : len(one.answer)] = [LETTERS.index(c) + 1 for c in one.answer]
    return labels


def _pad(some: list[_Cut], size: int) -> Rows:
    first = some[0].values
    values = np.zeros((len(some), size, first.shape[1]), first.dtype)
    for row, one in enumerate(some):
        values[row, : len(one.values)] = one.values
    return values, np.array([len(one.values) for one in some])


def _say(
    task: Task, answer: Callable[[Rows], np.ndarray], positions: int, ask: list[_Cut]
) -> list[str]:
    """The likeliest class of each, or the letters of the likeliest path."""
    size = bucket(max(len(one.values) for one in ask), _SIZES)
    said = []
    for at in range(0, len(ask), _BATCH):
        some = ask[at : at + _BATCH]
        values, lengths = _pad(some + [some[-1]] * (_BATCH - len(some)), size)
        best = answer((values, lengths)).argmax(-1)[: len(some)]
        if task.classes:
            said += [task.classes[i] for i in best]
        else:
            said += [
                _letters(path[: n * positions]) for path, n in zip(best, lengths, strict=False)
            ]
    return said


def _letters(path: np.ndarray) -> str:
    """What CTC's path of symbols int [n] spells: repeats are one, blanks (0) none, and neither is
    space at the ends, as in the texts."""
    kept = path[np.flatnonzero(np.diff(path, prepend=0))]
    return " ".join("".join(LETTERS[i - 1] for i in kept if i).split())


def _score(task: Task, asked: Sequence[str], said: Sequence[str]) -> dict[str, Figure | None]:
    pairs = list(zip(asked, said, strict=True))
    if task.classes:
        return {"accuracy": ratio([float(a == b) for a, b in pairs], None)}
    words = [(wer.normalize(text), wer.normalize(heard)) for text, heard in pairs]
    return {
        "wer": ratio([wer.count_errors(*w).total for w in words], [len(a) for a, _ in words]),
        "cer": ratio([Levenshtein.distance(*p) for p in pairs], [len(a) for a, _ in pairs]),
    }
