"""Prints the grid that a layout makes of an example: python -m slm_jax.layouts.show FILE.gin"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from slm_jax.errors import run_main
from slm_jax.layouts.layout import Layout
from slm_jax.layouts.operators import BEFORE

LEGEND = """\
Each column is fed to the model, which predicts the next one. 2.5 is level 2 of item 5; 2.5* is
also predicted (a target of the loss); INIT stands before a row begins, PAD after it has ended.
"""


def render(layout: Layout, pieces: Sequence[Sequence[str]], text_only: bool = False) -> str:
    """The grid of an example as text, a line a row.

    Args:
      layout: what to show.
      pieces: the words of the example, each as the pieces that stand for its text ids; without a
        `Text` row, one frame for each word.
      text_only: show a record that has no stream but text.
    """
    record = _record(layout, pieces)
    if text_only:
        record = {family: record[family] for family in layout.families[:1]}
    placement, weights = layout.place(record), layout.arrange(record).weights
    flat = list(itertools.chain.from_iterable(pieces))
    table = []
    for r, row in enumerate(layout.rows):
        ends = ("BOS", "EOS") if row.name == "text" else ("INIT", "PAD")
        cells = [row.name]
        for column, item in enumerate(placement.source[r]):
            if item < 0:
                cell = ends[0] if item == BEFORE else ends[1]
            else:
                cell = flat[item] if row.name == "text" else f"{row.level}.{item}"
            predicted = column > 0 and weights[r, column - 1] > 0
            cells.append(cell + "*" if predicted else cell)
        table.append(cells)
    clock = ["word" if layout.has_text else "frame", *(str(t) for t in placement.clock)]
    table.insert(0, [cell.replace("-1", "") for cell in clock])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)
    return "\n".join(lines) + "\n"


def _record(layout: Layout, pieces: Sequence[Sequence[str]]) -> dict[str, SimpleNamespace]:
    """A record with as many items as the example has words or frames; their ids are all 0."""
    levels = {row.family: row.level + 1 for row in layout.rows}
    record = {
        family: SimpleNamespace(values=np.zeros((len(pieces), count), np.int32), index=None)
        for family, count in levels.items()
    }
    if layout.has_text:
        index = np.repeat(np.arange(len(pieces)), [len(word) for word in pieces])
        text = SimpleNamespace(values=np.zeros((len(index), 1), np.int32), index=index)
        record[layout.families[0]] = text
    return record


def main() -> None:
    from slm_jax import config  # a command-line tool reads gin; the layouts themselves do not

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gin_file", help="a system: a file of gin/systems/, or a path")
    parser.add_argument("--text", default="hello there, world", help="the words of the example")
    parser.add_argument("--piece", type=int, default=4, help="characters that make one text id")
    parser.add_argument("--text_only", action="store_true", help="a record without speech")
    args, bindings = parser.parse_known_args()
    for flag in bindings:
        if not flag.startswith("--gin."):
            parser.error(f"unknown flag {flag}; overrides are written --gin.NAME=value")
    bindings = [flag.removeprefix("--gin.") for flag in bindings]
    layout = config.load([args.gin_file], bindings, root="System").layout
    size = args.piece
    words = [
        [word[start : start + size] for start in range(0, len(word), size)]
        for word in args.text.split()
    ]
    print(render(layout, words, args.text_only) + "\n" + LEGEND, end="")


if __name__ == "__main__":
    run_main(main)
