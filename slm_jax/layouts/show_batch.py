"""Prints a packed row of a batch as the grid that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slm_jax.layouts.grid import Row
from slm_jax.layouts.layout import Layout

LEGEND = """\
Each column is fed to the model; a star marks what is predicted (a target of the loss), >5* what is
predicted behind the last column of a record; - is empty. Text is shown as its pieces, special ids
by name, all else as ids."""


def render(
    layout: Layout,
    row: Mapping[str, Any],
    piece: Callable[[int], str] = str,
    *,
    most: int = 64,
    width: int = 100,
) -> str:
    """The first columns of a row.

    Args:
      layout: that made it.
      row: of `slm_jax.data.rows.pack_row`.
      piece: text id -> what it stands for.
      most: columns to show.
      width: characters of a line.
    """
    named = [("record", [str(n) if n else "" for n in row["segment_ids"][:most]])]
    named += [
        (one.name, _line(layout, one, row, place, piece)[:most])
        for place, one in enumerate(layout.rows)
    ]
    head = max(len(name) for name, _ in named)
    wide = [max(map(len, column)) for column in zip(*(cells for _, cells in named), strict=True)]
    lines, start = [], 0
    while start < len(wide):
        end = start + 1
        while end < len(wide) and head + sum(n + 2 for n in wide[start : end + 1]) <= width:
            end += 1
        for name, cells in named:
            here = zip(cells[start:end], wide[start:end], strict=True)
            text = "  ".join(cell.ljust(n) for cell, n in here)
            lines.append(f"{name:{head}}  {text}".rstrip())
        lines.append("")
        start = end
    columns = len(row["segment_ids"])
    if columns > most:
        lines.append(f"... and {columns - most} columns more")
    return "\n".join([*lines, LEGEND])


def _line(
    layout: Layout, one: Row, row: Mapping[str, Any], place: int, piece: Callable[[int], str]
) -> list[str]:
    names = dict(one.names)
    shown = piece if one.family.startswith("text") else str
    segments, counts = row["segment_ids"], row["weights"][place] > 0

    def said(id_: int) -> str:
        return names.get(id_) or ("-" if id_ < 0 else shown(id_))

    cells = []
    for column, segment in enumerate(segments.tolist()):
        if not segment:
            cells.append("")
            continue
        source = column - layout.shift  # the column that predicts this one
        star = source >= 0 and segments[source] == segment and counts[source]
        text = said(int(row["tokens"][place, column])) + "*" * bool(star)
        ends = layout.shift and (column + 1 == len(segments) or segments[column + 1] != segment)
        if ends and counts[column]:
            text += f">{said(int(row['targets'][place, column]))}*"
        cells.append(text)
    return cells
