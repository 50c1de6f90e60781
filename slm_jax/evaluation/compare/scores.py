"""How likely a trained system finds held-out utterances: nats of single records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from slm_jax.data.rows import Row, pack_row, stack
from slm_jax.data.schema import Record
from slm_jax.evaluation import bootstrap
from slm_jax.evaluation.compare import facts
from slm_jax.models.grid_config import GridLMConfig
from slm_jax.models.system import System
from slm_jax.nn import tree
from slm_jax.training.losses import losses

_ROWS = 8  # of a batch


class Nats(NamedTuple):
    """Of each record: -log p of its targets, float [n], and how many targets, int [n]. Of vectors
    it is what their head minimises, for equal noise."""

    total: np.ndarray
    targets: np.ndarray


class Scorer:
    """Teacher-forced scores of records one by one, without chance in the layout.

    Args:
      system: layout and model; a depth transformer that was trained on a share of the columns is
        scored on all.
      params: of its model.
      seq_len: columns, at least those of the longest record.
    """

    def __init__(self, system: System, params: tree.Params, seq_len: int):
        model = system.model
        if isinstance(model, GridLMConfig):
            model = dataclasses.replace(model, depth_share=1.0)
        whole = System(system.layout, model)
        graphdef, _ = tree.pure_params(nnx.eval_shape(lambda: whole.build(nnx.Rngs(0))))
        self.layout, self._seq_len, self._params = system.layout, seq_len, params

        def of_row(params: tree.Params, row: Mapping[str, jax.Array]) -> jax.Array:
            batch = jax.tree.map(lambda x: x[None], row)
            built = tree.merge(graphdef, params)
            if isinstance(model, GridLMConfig):
                found = built.losses(batch)
                of_ids = sum(found[whole.layout.rows[row].name] for row in built.rows)
                return of_ids + found.get("vectors", 0.0)
            return sum(total for total, _ in losses(built(batch), batch).values())

        def of_rows(params: tree.Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            return jax.lax.map(lambda row: of_row(params, row), batch)

        self._score = jax.jit(of_rows)

    def speech(self, records: Sequence[Record]) -> Nats:
        """Of the items of speech."""
        return self._nats(records, "speech")

    def text(self, records: Sequence[Record]) -> Nats:
        """Of the items of text, in the rows of the layout."""
        return self._nats(records, "text")

    def _nats(self, records: Sequence[Record], kind: str) -> Nats:
        total, targets = np.zeros(len(records)), np.zeros(len(records), int)
        for layout in facts.stages(self.layout):
            rows = [self._row(layout, record, kind) for record in records]
            targets += [int(row["weights"].sum()) for row in rows]
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                empty = [self._empty(layout)] * (_ROWS - len(some))
                found = np.asarray(self._score(self._params, stack([*some, *empty])))
                total[start : start + len(some)] += found[: len(some)]
        return Nats(total, targets)

    def _row(self, layout: Any, record: Record, kind: str) -> Row:
        row = pack_row(layout, self._seq_len, (record,), None)
        mask = getattr(facts.targets(layout, record), kind)
        row["weights"][:] = 0
        row["weights"][:, : mask.shape[1]] = mask
        return row

    def _empty(self, layout: Any) -> Row:
        return pack_row(layout, self._seq_len, (), None)


def pair_accuracy(
    true: Nats, false: Nats, places: Sequence[int], count: int
) -> bootstrap.Figure | None:
    """Share of the pairs whose true utterance is likelier, by target.

    Args:
      true: of `count` utterances.
      false: of their twins.
      places: the utterance of each twin.

    Returns:
      The share; its interval is over utterances, since twins of one are no independent evidence.
    """
    wins, pairs = np.zeros(count), np.zeros(count)
    with np.errstate(invalid="ignore", divide="ignore"):
        own, other = true.total / true.targets, false.total / false.targets
    for place, score in zip(places, other, strict=True):
        wins[place] += score > own[place]
        pairs[place] += 1
    wins[pairs == 0] = np.nan
    return bootstrap.ratio(wins, pairs)
