"""Layouts whose clock are words: ticks become as many columns as a word has text ids.

A speech item of a word stands in the first column of its tick, where it is predicted, and is held
over the others, where the model reads it again (TASTE-SpokenLM's `prepare_conditional_embeds`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.cells import View, items, named, specials
from slm_jax.layouts.expression import Operator
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.text import text_of


def check(expression: Operator, view: View) -> None:
    """Raises a UserError where the text of a record is not one id or more for each word."""
    text = text_of(expression)
    item = view.record[text.family]
    index = item.index
    if index is None or len(index) != len(item.values):
        problem = "has no word index for each id"
    elif len(index) and (index[0] != 0 or not np.isin(np.diff(index), (0, 1)).all()):
        problem = "has a word without an id, or words out of order"
    elif (np.asarray(item.values) == text.eos).any():
        problem = f"has the EOS id {text.eos} inside"
    else:
        return
    raise UserError(
        f"layout {view.name}: stream {text.family!r} of {named(view.record)} {problem}",
        "make the stream again by python -m data_pipelines.build",
    )


def count(expression: Operator, view: View) -> int:
    """Words of the record."""
    index = view.record[text_of(expression).family].index
    return int(index[-1]) + 1 if len(index) else 0


def length(expression: Operator, view: View) -> int:
    """Columns that the model reads."""
    ids = len(view.record[text_of(expression).family].values)
    return ids + (1 if _text_only(expression, view) else expression.tail)


def place(expression: Operator, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(`CELL` [R, C] with the initial column, clock int [C])."""
    text, rows = text_of(expression), expression.rows
    if _text_only(expression, view):
        ticks = [specials(count(expression, view) + 1, row.init) for row in rows]
        ticks = np.stack(ticks)
        ticks[0] = text.place(view)[0]
    else:
        ticks = expression.place(view)
    ticks = np.concatenate([initial(rows), ticks], axis=1)
    index = np.asarray(view.record[text.family].index)
    columns = np.ones(ticks.shape[1], int)
    columns[1 : 1 + count(expression, view)] = np.bincount(index)
    cells = np.repeat(ticks, columns, axis=1)
    clock = np.repeat(np.arange(len(columns)) - 1, columns)
    cells["weight"][:, 1:] *= clock[1:] != clock[:-1]  # what is held is no target
    number = view.number(text.streams[0])
    cells[0, 1 : 1 + len(index)] = items(number, 0, np.arange(len(index)), text.weight)
    return cells, clock


def initial(rows: Sequence[Row]) -> np.ndarray:
    """The column before the first: `CELL` [R, 1]."""
    return np.stack([specials(1, row.init) for row in rows])


def restore(rows: Sequence[Row], families: Sequence[str], grid: Grid) -> dict[str, Restored]:
    """`Layout.restore` by the clock alone, which decoding knows too."""
    streams: dict[str, Restored] = {}
    end = int(grid.clock.max(initial=-1)) + 1
    ended = (grid.content[0] == rows[0].pad) & (grid.clock >= 0)
    if ended.any():
        end = int(grid.clock[ended].min())
    words = (grid.clock >= 0) & (grid.clock < end)
    if words.any():
        values = grid.content[0, words][:, None]
        streams[families[0]] = Restored(values, grid.clock[words], np.arange(len(values)))
    ticks, first = np.unique(grid.clock, return_index=True)
    first = first[ticks >= 0]
    for family in families[1:]:
        levels = []
        for r, row in enumerate(rows):
            if row.family == family:
                ids = grid.content[r, first[row.delay :]][:end]
                levels.append(ids[: np.append(ids >= row.classes, True).argmax()])
        kept = min(map(len, levels))
        if kept:
            values = np.stack([ids[:kept] for ids in levels], 1)
            streams[family] = Restored(values, None, np.arange(kept))
    return streams


def last_columns(clock: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """The last column of each tick, int32; 0 for ticks before the first."""
    return (np.searchsorted(clock, ticks, side="right") - 1).clip(0).astype(np.int32)


def _text_only(expression: Operator, view: View) -> bool:
    return any(stream.family not in view.record for stream in expression.streams)
