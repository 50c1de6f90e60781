"""A layout: an expression that turns records into grids, and grids back into streams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.operators import AFTER, BEFORE, Expression, delays_of, text_of
from slm_jax.layouts.scheduler import Scheduler
from slm_jax.streams import StreamSpec, fingerprint


class Placement(NamedTuple):
    """Where the items of a record go.

    Attributes:
      source: int [R, C], index of the item in each cell, or BEFORE, or AFTER. An item stands in
        every column of its tick.
      clock: int [C], tick of each column; the initial column has -1.
    """

    source: np.ndarray
    clock: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the streams of a record become the columns that a transformer sees.

    A record maps families to items that have `values` (int [n, levels]) and `index` (the word of
    each item, for text). With a `Text` row, a record that has no other stream of the layout is
    text only: the other rows stay at INIT and predict nothing.

    Attributes:
      name: for people and error messages.
      of: the expression.
    """

    name: str
    of: Expression

    def __post_init__(self) -> None:
        wanted = "column" if text_of(self.of) is None else "word"
        for delay in delays_of(self.of):
            if delay.clock != wanted:
                reason = "no Text row gives words" if wanted == "column" else "Text gives words"
                raise ValueError(f"of: Delay.clock must be {wanted!r} ({reason})")
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"of: a stream stands in it twice: {', '.join(names)}")

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Top to bottom; the text row, if any, is row 0."""
        return self.of.rows

    @property
    def families(self) -> tuple[str, ...]:
        """The streams that a dataset must have."""
        return tuple(dict.fromkeys(row.family for row in self.rows))

    @property
    def has_text(self) -> bool:
        """Whether row 0 is text, which makes words the clock."""
        return text_of(self.of) is not None

    @property
    def tail(self) -> int:
        """Ticks after the streams' own that the layout adds (EOS, flushed levels)."""
        return self.of.tail

    def fingerprint(self) -> str:
        """Digest of the expression: equal if and only if the grids are."""
        return fingerprint(_tree(self.of))

    def check(self, specs: Mapping[str, StreamSpec]) -> None:
        """Compares the layout with the streams of a dataset, before anything is compiled.

        Raises:
          UserError: naming the stream that is missing or whose vocabulary differs.
        """
        for family in self.families:
            vocab = tuple(row.classes for row in self.rows if row.family == family)
            if family not in specs:
                raise UserError(
                    f"layout {self.name}: the dataset has no stream {family!r}, only "
                    f"{', '.join(sorted(specs))}",
                    f"tokenize the dataset with {family}, or name another family in the layout",
                )
            if specs[family].vocab != vocab:
                raise UserError(
                    f"layout {self.name}: stream {family!r} has codes per level "
                    f"{specs[family].vocab}, the layout says {vocab}",
                    "set the layout's vocab to that of the tokenizer that made the stream",
                )

    def length(self, record: Mapping[str, Any]) -> int:
        """Columns that `arrange(record)` feeds to the model, without arranging."""
        ticks = self._ticks(record)
        if not self.has_text:
            return max(ticks.values()) + self.tail
        tail = self.tail if len(ticks) == len(self.families) else 1
        return len(record[self.families[0]].values) + tail

    def place(self, record: Mapping[str, Any]) -> Placement:
        """The index arrays behind `arrange`."""
        ticks = self._ticks(record)
        if len(ticks) == len(self.families):
            cells = self.of.cells(ticks)
        else:
            words = ticks[self.families[0]]
            cells = np.full((len(self.rows), words + 1), BEFORE)
            cells[0] = [*range(words), AFTER]
        cells = np.pad(cells, ((0, 0), (1, 0)), constant_values=BEFORE)  # the initial column
        columns = np.ones(cells.shape[1], int)
        if self.has_text:
            index = record[self.families[0]].index
            columns[1 : 1 + ticks[self.families[0]]] = np.bincount(index)
        source = np.repeat(cells, columns, axis=1)
        if self.has_text:
            source[0, 1 : 1 + len(index)] = np.arange(len(index))
        return Placement(source, np.repeat(np.arange(len(columns)) - 1, columns))

    def arrange(self, record: Mapping[str, Any], key: Any = None) -> Grid:
        """Lays one record out.

        Args:
          record: family -> item.
          key: what a layout with chance in it draws from; none of today's operators does.

        Raises:
          UserError: a stream is missing, streams disagree in length, an id is out of range.
        """
        source, clock = self.place(record)
        content = np.empty(source.shape, np.int32)
        worth = np.zeros(source.shape, np.float32)
        starts = np.append(True, clock[1:] != clock[:-1])
        for r, row in enumerate(self.rows):
            content[r] = np.where(source[r] == BEFORE, row.init, row.pad)
            placed = source[r] >= 0
            if placed.any():
                content[r, placed] = self._ids(record, row)[source[r, placed]]
            if row.name == "text":
                placed |= (clock == clock[placed].max(initial=-1) + 1) & (clock >= 0)  # EOS
            else:
                placed &= starts
            worth[r] = placed * (row.weight * row.predicted)
        return Grid(content, worth[:, 1:], clock.astype(np.int32))

    def origins(self, clock: np.ndarray) -> np.ndarray:
        """Where the words (frames) stand whose items come next.

        Args:
          clock: int [S + 1] of a grid.

        Returns:
          int32 [R, S]: for each row the last column of the tick to which the item of column s + 1
          belongs: a level with a delay of d words speaks of the word d words back. It is never
          after column s, and 0 where there is no such tick yet.
        """
        ticks = clock[1:] - np.array([row.delay for row in self.rows])[:, None]
        return _last_columns(clock, ticks).clip(max=np.arange(len(clock) - 1, dtype=np.int32))

    def ends(self, clock: np.ndarray) -> np.ndarray:
        """What `Scheduler.init` takes of a prompt.

        Args:
          clock: int [C] of the prompt.

        Returns:
          int32 [T], the last column of its last tick, of the tick before, and so on as far back as
          the most delayed row speaks.
        """
        return _last_columns(clock, clock[-1] - np.arange(max(1, *(r.delay for r in self.rows))))

    def arrange_prompt(self, record: Mapping[str, Any]) -> Grid:
        """The columns from the initial one to that of the last word's last id, to be continued."""
        grid = self.arrange(record)
        stop = int((grid.clock < self._ticks(record)[self.families[0]]).sum())
        return Grid(grid.content[:, :stop], grid.weights[:, : stop - 1], grid.clock[:stop])

    def collect(self, content: np.ndarray, clock: np.ndarray) -> Grid:
        """A grid of decoded cells, for `restore`.

        Args:
          content: int [R, C], prompt and generated columns with the initial one.
          clock: int [C], tick of each column, -1 for the initial one.
        """
        weights = np.zeros((content.shape[0], content.shape[1] - 1), np.float32)
        return Grid(np.asarray(content, np.int32), weights, np.asarray(clock, np.int32))

    def restore(self, grid: Grid) -> dict[str, Restored]:
        """Inverse of `arrange` on what the layout keeps.

        Left out are streams without an item, and items that the grid lacks in one of their levels:
        the last ones under a "truncate" or "valid_only" end, or where decoding was cut short.
        """
        streams: dict[str, Restored] = {}
        end = int(grid.clock.max(initial=-1)) + 1
        if self.has_text:
            ended = (grid.content[0] == self.rows[0].pad) & (grid.clock >= 0)
            if ended.any():
                end = int(grid.clock[ended].min())
            words = (grid.clock >= 0) & (grid.clock < end)
            if words.any():
                values = grid.content[0, words][:, None]
                streams[self.families[0]] = Restored(values, grid.clock[words])
        ticks, first = np.unique(grid.clock, return_index=True)
        first = first[ticks >= 0]
        for family in self.families[self.has_text :]:
            levels = []
            for r, row in enumerate(self.rows):
                if row.family == family:
                    ids = grid.content[r, first[row.delay :]][:end]
                    levels.append(ids[: np.append(ids >= row.classes, True).argmax()])
            kept = min(map(len, levels))
            if kept:
                streams[family] = Restored(np.stack([ids[:kept] for ids in levels], 1), None)
        return streams

    def scheduler(self, starts_word: np.ndarray | None = None) -> Scheduler:
        """The rule that turns sampled ids into columns while decoding.

        Args:
          starts_word: bool [V], whether a text id begins a word (`word_starts`); only with a
            `Text` row.
        """
        return Scheduler.of(self.rows, self.tail, starts_word if self.has_text else None)

    def _ticks(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Words or frames of each stream of the layout that the record has."""
        found = [family for family in self.families if family in record]
        if len(found) < len(self.families) and not (self.has_text and found == [self.families[0]]):
            missing = [family for family in self.families if family not in record]
            raise UserError(
                f"layout {self.name}: {_name(record)} has no stream {', '.join(missing)}",
                "tokenize the dataset with it, or name another family in the layout",
            )
        ticks = {family: len(record[family].values) for family in found}
        if self.has_text:
            ticks[found[0]] = self._words(record, found[0])
        return ticks

    def _words(self, record: Mapping[str, Any], family: str) -> int:
        index = record[family].index
        if index is None or len(index) != len(record[family].values):
            problem = "has no word index for each id"
        elif len(index) and (index[0] != 0 or not np.isin(np.diff(index), (0, 1)).all()):
            problem = "has a word without an id, or words out of order"
        elif (np.asarray(record[family].values) == self.rows[0].pad).any():
            problem = f"has the EOS id {self.rows[0].pad} inside"
        else:
            return int(index[-1]) + 1 if len(index) else 0
        raise UserError(
            f"layout {self.name}: stream {family!r} of {_name(record)} {problem}",
            "make the stream again by python -m data_pipelines.build",
        )

    def _ids(self, record: Mapping[str, Any], row: Row) -> np.ndarray:
        values = np.asarray(record[row.family].values)
        if row.level >= values.shape[1]:
            problem = f"has {values.shape[1]} levels, the layout wants level {row.level}"
        elif values[:, row.level].min() < 0 or values[:, row.level].max() >= row.classes:
            problem = f"has ids outside [0, {row.classes}) in level {row.level}"
        else:
            return values[:, row.level]
        raise UserError(
            f"layout {self.name}: stream {row.family!r} of {_name(record)} {problem}",
            "set the layout's vocab to that of the tokenizer that made the stream",
        )


def _last_columns(clock: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """The last column of each tick, int32; 0 for ticks before the first."""
    return (np.searchsorted(clock, ticks, side="right") - 1).clip(0).astype(np.int32)


def _name(record: Mapping[str, Any]) -> str:
    return next(
        (f"record {item.id!r}" for item in record.values() if hasattr(item, "id")), "a record"
    )


def _tree(value: Any) -> Any:
    """A JSON-able form of an expression that names its operators."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    return [_tree(item) for item in value] if isinstance(value, tuple) else value
