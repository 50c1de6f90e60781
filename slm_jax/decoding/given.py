"""What a batch of records gives a `GridLM` before it decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.layouts import Layout

BUCKET = 32  # lengths are rounded up to multiples of this, so that few programs are compiled


class Given(NamedTuple):
    """What a batch of sequences knows from the start, B of them.

    Attributes:
      upstream: the text LLM's columns, "upstream/..." as `GridLM` takes them; empty without one.
      places: int [B, N], the column of "upstream/..." that has item n; -1 beyond the last.
      vectors: f32 [B, T, L] of the continuous row, as far as they are known; T may be 0.
      counts: int [B], how many.
    """

    upstream: Mapping[str, np.ndarray]
    places: np.ndarray
    vectors: np.ndarray
    counts: np.ndarray


def given_of(layout: Layout, records: Sequence[Mapping[str, Any]]) -> Given:
    """What `GridLM` must be given of records before it decodes them."""
    upstream: dict[str, np.ndarray] = {}
    places = np.zeros((len(records), 0), np.int32)
    if layout.upstream is not None:
        grids = [layout.upstream.arrange(record) for record in records]
        family = layout.upstream.streams[0].family
        length = round_up(max(grid.tokens.shape[1] for grid in grids))
        count = max(len(record[family].values) for record in records)
        upstream = {
            "upstream/tokens": np.zeros((len(grids), len(layout.upstream.rows), length), np.int32),
            "upstream/positions": np.zeros((len(grids), length), np.int32),
            "upstream/segment_ids": np.zeros((len(grids), length), np.int32),
        }
        places = np.full((len(records), round_up(count)), -1, np.int32)
        for b, grid in enumerate(grids):
            columns = grid.tokens.shape[1]
            upstream["upstream/tokens"][b, :, :columns] = grid.tokens
            upstream["upstream/positions"][b, :columns] = np.arange(columns)
            upstream["upstream/segment_ids"][b, :columns] = 1
            cells = grid.cells[:, :columns]
            row, column = np.nonzero(cells["stream"] >= 0)
            places[b, cells["item"][row, column]] = column
    row = layout.vector_row
    if row is None:
        return Given(upstream, places, np.zeros((len(records), 0, 0)), np.zeros(len(records)))
    known = [] if row.predicted else [np.asarray(r[row.family].values) for r in records]
    counts = np.array([len(v) for v in known] or [0] * len(records), np.int32)
    vectors = np.zeros((len(records), round_up(counts.max()), row.width), np.float32)
    for b, values in enumerate(known):
        vectors[b, : len(values)] = values
    return Given(upstream, places, vectors, counts)


def round_up(length: int) -> int:
    """A length that programs are compiled for."""
    return -(-length // BUCKET) * BUCKET
