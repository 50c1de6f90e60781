"""One row of a batch: the grids of several records side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax.layouts import Grid, Layout

Row = dict[str, np.ndarray]


def pack_row(
    layout: Layout,
    seq_len: int,
    records: Iterable[Mapping[str, Any]],
    key: Sequence[int] | None,
) -> Row:
    """Lays records out one after the other.

    Args:
      layout: how.
      seq_len: S, columns that the row has.
      records: family -> item each; together they fit.
      key: integers from which all chance is drawn, with the place of the record; None for what
        `Layout.arrange` does without.

    Returns:
      "tokens", "targets" int32 [R, S]; "weights" float32 [R, S]; "segment_ids" int32 [S], 0 for
      padding, else 1, 2, ... for each record; "positions" int32 [S], from 0 in each record; "seeds"
      uint32 [], for what a model draws. Where words are the clock "origins" int32 [R, S], columns
      of the row (`Layout.origins`). With a row of vectors "vectors" float32 [S, L], and
      "vector_targets" where it is predicted. With an upstream layout its row under "upstream/...",
      "links" int32 [S], columns of that row (-1 for none), and "copies" int32 [S].
    """
    row = _empty(layout, seq_len)
    row["seeds"] = np.random.default_rng(list(key or (0,))).integers(
        2**32, size=(), dtype=np.uint32
    )
    column = text = 0
    for segment, record in enumerate(records):
        own = None if key is None else (*key, segment)
        grid = layout.arrange(record, own)
        here = slice(column, column + grid.tokens.shape[1])
        _put(row, "", grid, here, segment)
        if layout.has_text:
            row["origins"][:, here] = column + layout.origins(grid.clock)
        if layout.vector_row is not None:
            row["vectors"][here] = layout.vectors(record, grid)
            if layout.vector_row.predicted:
                row["vector_targets"][here] = layout.vector_targets(record, grid)
        if layout.upstream is not None:
            above = layout.upstream.arrange(record, own)
            there = slice(text, text + above.tokens.shape[1])
            _put(row, "upstream/", above, there, segment)
            family = layout.upstream.streams[0].family
            if any(stream.family == family for stream in layout.streams):
                links = layout.links(grid, layout.upstream, above, family)
                row["links"][here] = np.where(links >= 0, links + text, -1)
                row["copies"][here] = layout.copies(grid, family)
            text = there.stop
        column = here.stop
    return row


def stack(rows: Sequence[Row]) -> Row:
    """Rows as a batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _empty(layout: Layout, seq_len: int) -> Row:
    row = _empty_grid("", len(layout.rows), seq_len)
    if layout.has_text:
        row["origins"] = np.zeros((len(layout.rows), seq_len), np.int32)
    if layout.vector_row is not None:
        row["vectors"] = np.zeros((seq_len, layout.vector_row.width), np.float32)
        if layout.vector_row.predicted:
            row["vector_targets"] = np.zeros_like(row["vectors"])
    if layout.upstream is not None:
        row |= _empty_grid("upstream/", len(layout.upstream.rows), seq_len)
        row["links"] = np.full(seq_len, -1, np.int32)
        row["copies"] = np.zeros(seq_len, np.int32)
    return row


def _empty_grid(prefix: str, rows: int, seq_len: int) -> Row:
    return {
        f"{prefix}tokens": np.zeros((rows, seq_len), np.int32),
        f"{prefix}targets": np.zeros((rows, seq_len), np.int32),
        f"{prefix}weights": np.zeros((rows, seq_len), np.float32),
        f"{prefix}segment_ids": np.zeros(seq_len, np.int32),
        f"{prefix}positions": np.zeros(seq_len, np.int32),
    }


def _put(row: Row, prefix: str, grid: Grid, here: slice, segment: int) -> None:
    row[f"{prefix}tokens"][:, here] = grid.tokens
    row[f"{prefix}targets"][:, here] = grid.targets
    row[f"{prefix}weights"][:, here] = grid.weights
    row[f"{prefix}segment_ids"][here] = segment + 1
    row[f"{prefix}positions"][here] = np.arange(grid.tokens.shape[1])
