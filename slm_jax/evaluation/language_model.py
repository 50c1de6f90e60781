"""Held-out cross-entropy of a speech LM, beside what it must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.data.schema import Record
from slm_jax.evaluation import baselines
from slm_jax.layouts import Grid, Layout
from slm_jax.models.backbone import Backbone
from slm_jax.models.speech_lm import SpeechLM
from slm_jax.nn.tree import Params, merge, pure_params

PROTOCOL = (
    "lm-1: every held-out utterance by itself after BOS, teacher-forced. Speech: nats per code, "
    "over every word and level. Text: nats per id over every id of the words, EOS left out; the "
    "untouched text LLM reads the same ids after the same BOS. Baselines: fitted on the train "
    "split, smoothing tuned there by leave-one-out, scored on the same codes. Intervals: 95 %, "
    "bootstrap over utterances."
)
_BUCKET = 32


def evaluate(
    model: SpeechLM,
    reference: Backbone | None,
    layout: Layout,
    train: Sequence[Record],
    held_out: Sequence[Record],
    batch_size: int = 8,
) -> dict[str, Any]:
    """Scores speech codes by level and text, on the held-out records.

    Args:
      model: the speech LM.
      reference: the text LLM it started from, untouched; None if there is none.
      layout: with a text row and the levels of one speech stream.
      train: records that the baselines are fitted on; "words" and the layout's speech stream.
      held_out: records with "words" and all streams of the layout.
      batch_size: records that go through the models together.

    Returns:
      {"protocol", "layout", "utterances", "text": {n, cross_entropy, perplexity, interval,
      reference_cross_entropy, reference_perplexity}, "speech": [{level, n, cross_entropy, interval,
      accuracy, unigram, given_word}]}. None stands for what there is not: figures of a missing
      reference, cross-entropy and interval of a continuous head, whose scores are no probabilities.
    """
    grids = [layout.arrange(record) for record in held_out]
    sums, counts = _score(model, reference, layout, grids, batch_size)
    speech = layout.families[1]
    vocab = [row.classes for row in layout.rows[1:]]
    base = baselines.evaluate(_spoken(train, speech), _spoken(held_out, speech), vocab)
    levels = []
    for level in range(len(vocab)):
        count = counts["codes"][:, level]
        if count.sum() != base.count:
            raise AssertionError(f"level {level}: {count.sum()} targets for {base.count} words")
        probable = model.config.head != "continuous"
        levels.append(
            {
                "level": level,
                "n": base.count,
                "cross_entropy": _mean(sums["codes"][:, level], count) if probable else None,
                "interval": _interval(sums["codes"][:, level], count) if probable else None,
                "accuracy": _mean(sums["hits"][:, level], count),
                "unigram": base.unigram[level],
                "given_word": base.given_word[level],
            }
        )
    text, own = counts["text"], _mean(sums["text"], counts["text"])
    untouched = _mean(sums["reference"], text) if reference is not None else None
    delays = ", ".join(str(row.delay) for row in layout.rows[1:])
    return {
        "protocol": PROTOCOL,
        "layout": f"{layout.name}, levels delayed by {delays} words",
        "utterances": len(held_out),
        "text": {
            "n": int(text.sum()),
            "cross_entropy": own,
            "interval": _interval(sums["text"], text),
            "perplexity": float(np.exp(own)),
            "reference_cross_entropy": untouched,
            "reference_perplexity": None if untouched is None else float(np.exp(untouched)),
        },
        "speech": levels,
    }


def _score(
    model: SpeechLM,
    reference: Backbone | None,
    layout: Layout,
    grids: Sequence[Grid],
    batch_size: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sums and counts of each record: "text", "reference" [n]; "codes", "hits" [n, K]."""
    graphdef, params = pure_params(model)
    llm_graphdef, llm_params = (None, {}) if reference is None else pure_params(reference)

    def nll(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(logits, jnp.where(weights > 0, targets, 0)[..., None], -1)
        return ((jax.nn.logsumexp(logits, -1) - chosen[..., 0]) * weights).sum(-1)

    @jax.jit
    def score(params: Params, llm_params: Params, batch: dict[str, jax.Array]):
        outputs = merge(graphdef, params)(batch)
        targets, weights = batch["targets"], batch["weights"]
        text = targets[:, 0], weights[:, 0]
        rows = list(zip(outputs.speech_logits, range(1, targets.shape[1]), strict=True))
        hits = [
            ((logits.argmax(-1) == targets[:, r]) * weights[:, r]).sum(-1) for logits, r in rows
        ]
        codes = [nll(logits, targets[:, r], weights[:, r]) for logits, r in rows]
        scores = {
            "text": nll(outputs.text_logits, *text),
            "codes": jnp.stack(codes, -1),
            "hits": jnp.stack(hits, -1),
        }
        if llm_graphdef is not None:
            llm = merge(llm_graphdef, llm_params)
            embedded = llm.embed(batch["tokens"][:, 0])
            hidden, _ = llm(embedded, batch["positions"], batch["segment_ids"])
            scores["reference"] = nll(llm.logits(hidden), *text)
        return scores

    order = np.argsort([grid.weights.shape[1] for grid in grids], kind="stable")
    sums: dict[str, list[np.ndarray]] = {}
    weights = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _batch(layout, [grids[i] for i in rows], batch_size)
        weights.append(batch["weights"].sum(-1)[: len(rows)])
        for name, values in jax.device_get(score(params, llm_params, batch)).items():
            sums.setdefault(name, []).append(values[: len(rows)].astype(np.float64))
    counts = np.concatenate(weights)
    joined = {name: np.concatenate(values) for name, values in sums.items()}
    return joined, {"text": counts[:, 0], "codes": counts[:, 1:]}


def _batch(layout: Layout, grids: Sequence[Grid], rows: int) -> dict[str, np.ndarray]:
    """One record a row, padded; weights are 1 where a word's id or code is to be predicted."""
    longest = max(grid.weights.shape[1] for grid in grids)
    length = -(-longest // _BUCKET) * _BUCKET
    levels = grids[0].weights.shape[0]
    batch = {
        "tokens": np.zeros((rows, levels, length), np.int32),
        "targets": np.zeros((rows, levels, length), np.int32),
        "weights": np.zeros((rows, levels, length), np.float32),
        "origins": np.zeros((rows, levels, length), np.int32),
        "segment_ids": np.zeros((rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
    }
    for row, grid in enumerate(grids):
        size = grid.weights.shape[1]
        batch["tokens"][row, :, :size] = grid.tokens
        batch["targets"][row, :, :size] = grid.targets
        batch["weights"][row, :, :size] = grid.weights > 0
        batch["origins"][row, :, :size] = layout.origins(grid.clock)
        batch["segment_ids"][row, :size] = 1
        eos = np.flatnonzero(grid.weights[0])[-1]  # the last text target
        batch["weights"][row, 0, eos] = 0
    return batch


def _spoken(records: Sequence[Record], family: str) -> list[tuple[list[str], np.ndarray]]:
    return [
        ([word.text for word in record["words"].words], record[family].values) for record in records
    ]


def _mean(sums: np.ndarray, counts: np.ndarray) -> float:
    return float(sums.sum() / counts.sum())


def _interval(sums: np.ndarray, counts: np.ndarray) -> list[float]:
    draws = np.random.default_rng(0).integers(0, len(sums), (1000, len(sums)))
    means = sums[draws].sum(1) / np.maximum(counts[draws].sum(1), 1)
    return np.quantile(means, [0.025, 0.975]).tolist()
