"""What a layout's grids of real utterances say before any model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.data.schema import Record
from slm_jax.decoding.one_shot import at_stage
from slm_jax.layouts import Grid, Layout, Nar
from slm_jax.layouts.operators import AnyStream


class Targets(NamedTuple):
    """A record under a layout.

    Attributes:
      grid: of it.
      speech, text: bool [R, S], targets that are items of a speech stream, or of a text.
    """

    grid: Grid
    speech: np.ndarray
    text: np.ndarray


def is_text(stream: AnyStream) -> bool:
    return stream.family.startswith("text")


def said(layout: Layout) -> tuple[AnyStream, ...]:
    """Speech streams that the layout learns to say."""
    return tuple(s for s in layout.streams if any(s.weights) and not is_text(s))


def says_vectors(layout: Layout) -> bool:
    """Whether it says vectors."""
    return layout.vector_row is not None and layout.vector_row.predicted


def texts(layout: Layout) -> list[str]:
    """How the layout has text: "read", "predicted", both, or not at all."""
    upstream = layout.upstream.streams if layout.upstream else ()
    found = ["predicted" if any(s.weights) else "read" for s in layout.streams if is_text(s)]
    return sorted({*found, *("read" for s in upstream if is_text(s))})


def text_ids(layout: Layout) -> int:
    """Ids of the text; 0 where there is none."""
    upstream = layout.upstream.streams if layout.upstream else ()
    return max([0, *(max(s.vocab) for s in (*layout.streams, *upstream) if is_text(s))])


def stages(layout: Layout) -> list[Layout]:
    """The layouts that together predict all that it can predict of a record."""
    (nar,) = [part for part in _inside(layout.of) if isinstance(part, Nar)] or [None]
    if nar is None:
        return [layout]
    return [at_stage(layout, stage) for stage in range(1, len(nar.of.vocab))]


def targets(layout: Layout, record: Mapping[str, Any]) -> Targets:
    """The grid of a record, without chance, and which of its targets are items."""
    grid = layout.arrange(record)
    cells = grid.cells[:, layout.shift :]
    item = (cells["stream"] >= 0) & (grid.weights > 0) & (cells["said"] < 0)
    written = [number for number, stream in enumerate(layout.streams) if is_text(stream)]
    text = np.isin(cells["stream"], written)
    return Targets(grid, item & ~text, item & text)


def group(layout: Layout, records: Iterable[Mapping[str, Any]]) -> str:
    """What is said, by stream and levels: losses of one group are comparable."""
    levels: dict[tuple[str, bool], set[int]] = {}
    for record in records:
        for one in stages(layout):
            found = targets(one, record)
            cells = found.grid.cells[:, one.shift :][found.speech]
            pairs = zip(cells["stream"].tolist(), cells["level"].tolist(), strict=True)
            for number, level in set(pairs):
                stream = one.streams[number]
                levels.setdefault((stream.family, stream.dedup), set()).add(stream.first + level)
    names = [
        f"{family} {'-'.join(map(str, sorted({min(own), max(own)})))}" + " without repeats" * dedup
        for (family, dedup), own in sorted(levels.items())
    ]
    return " + ".join(names) or "text"


def counts(layout: Layout, records: Sequence[Record]) -> dict[str, float]:
    """Columns and targets by second of audio, and the mean length in columns."""
    seconds = sum(record["words"].duration for record in records)
    columns = cells = speech = 0
    for record in records:
        found = [targets(one, record) for one in stages(layout)]
        columns += found[0].grid.targets.shape[1]
        cells += sum(int((one.grid.weights > 0).sum()) for one in found)
        speech += sum(int(one.speech.sum()) for one in found)
    return {
        "columns_per_second": columns / seconds,
        "targets_per_second": cells / seconds,
        "speech_targets_per_second": speech / seconds,
        "columns": columns / len(records),
    }


def items_per_second(layout: Layout, records: Sequence[Record]) -> float:
    """Items, times levels, of what is said, whether the layout keeps all of them or not."""
    seconds = sum(record["words"].duration for record in records)
    count = 0
    for stream in said(layout):
        levels = sum(weight > 0 for weight in stream.weights) - layout.holds(Nar)  # 0 is given
        count += sum(len(stream.distinct(r[stream.family].values)) for r in records) * levels
    return count / seconds


def latency(layout: Layout, record: Mapping[str, Any]) -> int | None:
    """Columns that are read before the first item of the speech is known in all of its levels.

    Of several streams that are said, the last one is heard. Under a layout without shift all
    columns are read first. None where the record has no speech under the layout.
    """
    grid = layout.arrange(record)
    if not layout.shift:
        return grid.targets.shape[1]
    heard = grid.cells["stream"] == layout.streams.index(said(layout)[-1])
    if not heard.any():
        return None
    first = heard & (grid.cells["item"] == grid.cells["item"][heard].min())
    columns: dict[int, int] = {}
    for row, column in zip(*np.nonzero(first), strict=True):
        columns.setdefault(int(grid.cells["level"][row, column]), int(column))
    return max(columns.values())


def answers_text(layout: Layout, record: Mapping[str, Any]) -> bool:
    """Whether text stands before the last of the speech, or is read by another transformer."""
    if layout.upstream is not None or not layout.shift:
        return True
    found = targets(layout, record)
    numbers = [number for number, stream in enumerate(layout.streams) if is_text(stream)]
    text = np.flatnonzero(np.isin(found.grid.cells["stream"], numbers).any(0))
    speech = np.flatnonzero(found.speech.any(0))
    return bool(len(text) and len(speech) and text[0] <= speech[-1])


def _inside(expression: Any) -> list[Any]:
    return [expression, *(part for one in expression.inside for part in _inside(one))]
