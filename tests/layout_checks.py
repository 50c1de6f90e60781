"""Decoding that is right in every sampled cell must make the training grid."""

import functools

import jax
import numpy as np

from slm_jax.layouts.automata import Automata
from slm_jax.layouts.cells import CELL

step = jax.jit(Automata.next)  # one program for all layouts of a size


@functools.cache
def scheduler_of(layout):
    return layout.scheduler()


def numbered(cells):
    """Items by their order among those that the grid keeps, which is all that decoding knows."""
    found = cells["item"].copy()
    for stream in range(cells["stream"].max(initial=-1) + 1):
        for level in range(cells["level"].max() + 1):
            mine = (cells["stream"] == stream) & (cells["level"] == level)
            found[mine] = np.unique(found[mine], return_inverse=True)[1]
    return found


def replay(layout, record, key=None, lengths=None):
    """Columns that the scheduler makes of a sampler that knows the grid, checked cell by cell.

    Args:
      layout: without a `Text` row.
      record: family -> item; levels that are only read are given, all of them.
      key: of the grid.
      lengths: family -> items, for streams whose end no id tells.
    """
    scheduler = scheduler_of(layout)
    grid = layout.arrange(record, key)
    given = {}
    for stream in layout.streams:
        if not stream.predicted and stream.family in record:
            levels = stream.first + len(stream.vocab)
            given[stream.family] = [record[stream.family].values[:, :levels]]
    known = {family: [count] for family, count in (lengths or {}).items()}
    fed = [n for n, s in enumerate(layout.streams) if s.predicted and not any(s.weights)]
    state = scheduler.init(1, given, known, [row.init for row in layout.rows])
    rng, cells, order = np.random.default_rng(0), [], numbered(grid.cells)
    for column in range(int(layout.initial), grid.content.shape[1]):
        assert not state.done[0], f"done at column {column} of {grid.content.shape[1]}"
        truth, told = grid.content[:, column], grid.cells[:, column]
        noise = rng.integers(0, 5, len(truth))
        wanted = (told["weight"] > 0) | np.isin(told["stream"], fed)  # by the host
        said = np.where(told["said"] >= 0, told["said"], truth)
        candidates = np.where(wanted, said, noise)[None].astype(np.int32)
        state, made = step(scheduler.automata, state, candidates)
        np.testing.assert_array_equal(made.ids[0], truth, f"column {column}")
        fresh = np.array(made.stream[0]) >= 0  # what is held or copied is no item of its own
        assert fresh[wanted & (told["stream"] >= 0)].all()
        np.testing.assert_array_equal(np.array(made.stream[0])[fresh], told["stream"][fresh])
        np.testing.assert_array_equal(np.array(made.item[0])[fresh], order[:, column][fresh])
        cell = np.zeros(len(truth), CELL)
        for field in ("stream", "level", "item"):
            cell[field] = getattr(made, field)[0]
        cells.append(cell)
        free = np.array(made.sampled[0])
        assert not (free & ~wanted).any(), f"column {column}: sampled, but no target"
    assert state.done[0]
    decoded = grid.cells.copy()
    if cells:
        for field in ("stream", "level", "item"):
            decoded[field][:, int(layout.initial) :] = np.stack(cells, 1)[field]
    again = layout.restore(layout.collect(grid.content, grid.clock, decoded))
    for family, stream in layout.restore(grid).items():
        np.testing.assert_array_equal(again[family].values, stream.values)
    return grid
