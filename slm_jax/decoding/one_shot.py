"""Decoding of layouts that predict all columns at once: VALL-E's later stages, and CTC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slm_jax.data.rows import pack_row, stack
from slm_jax.layouts import Layout, Nar, Restored
from slm_jax.models.grid_lm import GridLM
from slm_jax.nn.tree import merge, pure_params


class OneShot:
    """A model whose layout has `shift = 0`.

    Args:
      model: with a `NarTrunk`, or with a CTC row.
      layout: the one it was trained with.
      length: columns that a record may take; one program serves all.
    """

    def __init__(self, model: GridLM, layout: Layout, length: int):
        self.layout, self.length = layout, length
        self._ctc = model.ctc
        graphdef, self._params = pure_params(model)

        def scores(params: dict[str, Any], batch: Mapping[str, jax.Array]) -> dict[int, jax.Array]:
            model: GridLM = merge(graphdef, params)
            states, _ = model.states(batch)
            found = {row: model.logits(states, row)[0].argmax(-1) for row in model.rows}
            return {row: ids + model.ids_of(row).start for row, ids in found.items()}

        self._scores = jax.jit(scores)

    def fill(self, record: Mapping[str, Any]) -> np.ndarray:
        """The codes int [T, K] of a record of which level 0 is known (the others are not read).

        Greedy, stage by stage, as VALL-E decodes (arXiv:2301.02111 §4.2.2).
        """
        stream = next(s for s in self.layout.streams if len(s.vocab) > 1)
        codes = np.asarray(record[stream.family].values).copy()
        codes[:, stream.first + 1 :] = 0
        for stage in range(1, len(stream.vocab)):
            layout = at_stage(self.layout, stage)
            known = Restored(codes, None, np.arange(len(codes)))
            filled = {**record, stream.family: known}
            grid = layout.arrange(filled)
            best = self._best(layout, filled)
            number = layout.streams.index(stream)
            cells = grid.cells[:, : grid.tokens.shape[1]]
            mine = (cells["stream"] == number) & (cells["level"] == stage)
            row, column = np.nonzero(mine)
            codes[cells["item"][mine], stream.first + stage] = best[int(row[0])][column]
        return codes

    def units(self, record: Mapping[str, Any]) -> np.ndarray:
        """Units int [n] of a CTC row: the best path, repeats and blanks left out."""
        grid = self.layout.arrange(record)
        (row,) = (r for r, line in enumerate(self.layout.rows) if line.predicted and line.classes)
        path = self._best(self.layout, record)[row][: grid.tokens.shape[1]]
        kept = path[np.append(True, path[1:] != path[:-1])]
        return kept[kept < self.layout.rows[row].classes]

    def _best(self, layout: Layout, record: Mapping[str, Any]) -> dict[int, np.ndarray]:
        batch = stack([pack_row(layout, self.length, (record,), (0,))])
        return jax.device_get(self._scores(self._params, batch))


def at_stage(layout: Layout, stage: int) -> Layout:
    """The same layout with its `Nar` at one stage."""

    def replace(value: Any) -> Any:
        if isinstance(value, Nar):
            return dataclasses.replace(value, stage=stage)
        if isinstance(value, tuple):
            return tuple(replace(part) for part in value)
        if dataclasses.is_dataclass(value):
            parts = {f.name: replace(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return dataclasses.replace(value, **parts)
        return value

    return dataclasses.replace(layout, of=replace(layout.of))
