"""Prints the grid that a layout makes of an example: python -m slm_jax.layouts.show FILE.gin"""

from __future__ import annotations

import argparse
import html
import itertools
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from slm_jax.errors import run_main
from slm_jax.layouts.grid import Row
from slm_jax.layouts.layout import Layout
from slm_jax.layouts.vectors import Vectors

LEGEND = """\
Each column is fed to the model, which predicts the next one. 2.5 is level 2 of item 5; a star marks
what is predicted (a target of the loss); >X says that X is predicted in its place; - is empty.
"""
_COLOURS = ("#fde68a", "#bfdbfe", "#bbf7d0", "#fbcfe8", "#ddd6fe", "#fed7aa")
_STYLE = """\
body { font: 14px system-ui, sans-serif; margin: 2em } table { border-collapse: collapse }
td, th { padding: 2px 6px; border: 1px solid #d4d4d8; text-align: center; white-space: nowrap }
th { background: #f4f4f5; text-align: left } td.target { font-weight: 700 }
td.special { color: #71717a }
"""


class Cell(NamedTuple):
    """A cell as people read it; `stream` is -1 for a special one."""

    text: str
    stream: int
    target: bool


def cells(
    layout: Layout, pieces: Sequence[Sequence[str]], frames: int, text_only: bool = False
) -> dict[str, list[Cell]]:
    """Row title -> the cells of an example.

    Args:
      layout: what to show.
      pieces: the words of the example, each as the pieces that stand for its text ids.
      frames: items of the fastest stream; without rates all have as many, and beside a `Text` row
        one a word.
      text_only: show a record that has no stream but text.
    """
    record = _record(layout, pieces, frames)
    if text_only:
        record = {family: record[family] for family in layout.families[:1]}
    flat = list(itertools.chain.from_iterable(pieces))
    placed, grid = layout.place(record).cells, layout.arrange(record)
    targets = np.zeros(placed.shape, bool)
    targets[:, layout.shift :] = grid.weights > 0
    table = {"word" if layout.has_text else "column": [_head(tick) for tick in grid.clock]}
    for r, row in enumerate(layout.rows):
        line = zip(placed[r], targets[r], strict=True)
        table[_title(row)] = [_cell(layout, row, flat, cell, bool(target)) for cell, target in line]
    return table


def render(
    layout: Layout,
    pieces: Sequence[Sequence[str]],
    text_only: bool = False,
    frames: int = 6,
) -> str:
    """The grid of an example as text, a line a row; see `cells`."""
    table = cells(layout, pieces, frames, text_only)
    lines = [[name, *(c.text + "*" * c.target for c in row)] for name, row in table.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(padded) + "\n"


def page(layout: Layout, pieces: Sequence[Sequence[str]], frames: int) -> str:
    """The same as an HTML page; a colour for each stream."""
    rows = []
    for name, row in cells(layout, pieces, frames).items():
        line = "".join(map(_html_cell, row))
        rows.append(f"<tr><th>{html.escape(name)}</th>{line}</tr>")
    title = html.escape(layout.name)
    body = f"<h1>{title}</h1><table>{''.join(rows)}</table><p>{html.escape(legend(layout))}</p>"
    head = f"<meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def _html_cell(cell: Cell) -> str:
    kinds = " ".join(["target"] * cell.target + ["special"] * (cell.stream < 0))
    colour = _COLOURS[cell.stream % len(_COLOURS)] if cell.stream >= 0 else "#fafafa"
    return f'<td class="{kinds}" style="background:{colour}">{html.escape(cell.text)}</td>'


def _head(tick: int) -> Cell:
    return Cell("" if tick < 0 else str(tick), -1, False)


def _cell(layout: Layout, row: Row, flat: Sequence[str], cell: Any, target: bool) -> Cell:
    names = dict(row.names)
    number = int(cell["stream"])
    if number < 0:
        text = names.get(int(cell["id"]), str(cell["id"]))
    else:
        stream = layout.streams[number]
        level, item = stream.first + int(cell["level"]), int(cell["item"])
        if _is_text(stream.family):
            text = flat[item]
        else:
            text = f"{'' if row.family else _letters(layout).get(stream.family, '')}{level}.{item}"
    if cell["said"] >= 0:
        text += f">{names.get(int(cell['said']), cell['said'])}"
    return Cell(text, number, target)


def _title(row: Row) -> str:
    """The row's name; where text and speech share a row, plain text is enough."""
    parts = row.name.split("+")
    if len(parts) > 1:
        parts = ["text" if _is_text(part) else part for part in parts]
    return "+".join(dict.fromkeys(parts))


def _letters(layout: Layout) -> dict[str, str]:
    """What stands before the items of each family in rows of several; none for a single one."""
    families = [family for family in layout.families if not _is_text(family)]
    families = [family for family in families if family != "words"]
    return dict(zip(families, string.ascii_lowercase, strict=False)) if families[1:] else {}


def legend(layout: Layout) -> str:
    """What the cells say."""
    shared = any(not row.family for row in layout.rows)
    letters = _letters(layout).items() if shared else ()
    named = "; ".join(f"{letter} is {family}" for family, letter in letters)
    return LEGEND + named + "\n" * bool(named)


def _is_text(family: str) -> bool:
    return family.startswith("text")


def _record(
    layout: Layout, pieces: Sequence[Sequence[str]], frames: int
) -> Mapping[str, SimpleNamespace]:
    """A record of the words, evenly spread; neighbouring items of a stream differ."""
    fastest = max(stream.rate for stream in layout.streams)
    seconds = frames / fastest if fastest else float(len(pieces))
    record = {}
    for stream in layout.streams:
        if _is_text(stream.family):
            index = np.repeat(np.arange(len(pieces)), [len(word) for word in pieces])
            ids = np.zeros((len(index), 1), np.int32)
            record[stream.family] = SimpleNamespace(values=ids, index=index)
            continue
        if layout.has_text:
            count = len(pieces)
        else:
            count = round(seconds * stream.rate) if stream.rate else frames
        vectors = isinstance(stream, Vectors)
        levels = stream.width if vectors else stream.first + len(stream.vocab)
        old = record.get(stream.family)
        if old is None or old.values.shape[1] < levels:
            values = np.tile(np.arange(count, dtype=np.int32)[:, None] % 2, (1, levels))
            record[stream.family] = SimpleNamespace(values=values, index=None)
    step = seconds / max(1, len(pieces))
    words = [
        SimpleNamespace(text="".join(word), start=n * step, end=(n + 1) * step)
        for n, word in enumerate(pieces)
    ]
    return record | {"words": SimpleNamespace(words=words)}


def main() -> None:
    from slm_jax import config  # a command-line tool reads gin; the layouts themselves do not

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "gin_file", help="a file that binds a Layout: of gin/layouts/, gin/systems/, or a path"
    )
    parser.add_argument("--text", default="hello there, world", help="the words of the example")
    parser.add_argument("--piece", type=int, default=4, help="characters that make one text id")
    parser.add_argument("--frames", type=int, default=6, help="items of the fastest stream")
    parser.add_argument("--text_only", action="store_true", help="a record without speech")
    parser.add_argument("--html", metavar="FILE", help="write a page instead of printing")
    args, bindings = parser.parse_known_args()
    for flag in bindings:
        if not flag.startswith("--gin."):
            parser.error(f"unknown flag {flag}; overrides are written --gin.NAME=value")
    bindings = [flag.removeprefix("--gin.") for flag in bindings]
    layout = config.load([args.gin_file], bindings, root="Layout", part=True)
    size = args.piece
    words = [
        [word[start : start + size] for start in range(0, len(word), size)]
        for word in args.text.split()
    ]
    if args.html:
        Path(args.html).write_text(page(layout, words, args.frames), encoding="utf-8")
        print(f"{args.html}: {layout.name}")
    else:
        print(render(layout, words, args.text_only, args.frames) + "\n" + legend(layout), end="")


if __name__ == "__main__":
    run_main(main)
