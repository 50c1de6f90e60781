"""Grids back into streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm_jax.layouts.grid import Grid, Restored
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.vectors import Vectors


def restore(streams: Sequence[AnyStream], grid: Grid, shift: int) -> dict[str, Restored]:
    """`Layout.restore` by the cells of a grid; `shift` is the layout's."""
    ids = grid.content
    if shift == 0:
        ids = np.where(grid.cells["hidden"], grid.targets, ids)
    found: dict[str, dict[int, dict[int, int]]] = {}
    vectors = {stream.family for stream in streams if isinstance(stream, Vectors)}
    for number, stream in enumerate(streams):
        for level, (low, _) in enumerate(stream.ranges):
            mine = (grid.cells["stream"] == number) & (grid.cells["level"] == level)
            items, values = grid.cells["item"][mine], ids[mine] - low
            levels = found.setdefault(stream.family, {})
            levels.setdefault(stream.first + level, {}).update(zip(items, values, strict=True))
    restored: dict[str, Restored] = {}
    for family, levels in found.items():
        # The finer levels that a NAR stage leaves for later are no loss.
        present = [level for level in sorted(levels) if levels[level] or shift]
        found_in = [set(levels[level]) for level in present]
        kept = sorted(set.intersection(*found_in)) if found_in else []
        if kept:
            values = [[levels[level][item] for level in present] for item in kept]
            values = np.array(values, np.int32)[:, : 0 if family in vectors else None]
            restored[family] = Restored(values, None, np.array(kept))
    return restored
