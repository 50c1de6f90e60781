"""What is read off the grids of a layout: streams, vectors, links between transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts import word_clock
from slm_jax.layouts.cells import View
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.restore import restore
from slm_jax.layouts.vectors import Vectors


class Reading:
    """The part of `Layout` that knows its grids, but not how they are made."""

    name: str
    shift: int
    has_text: bool
    rows: tuple[Row, ...]
    streams: tuple[AnyStream, ...]
    families: tuple[str, ...]

    @property
    def vector_row(self) -> Row | None:
        """The row of `Vectors`, if there is one."""
        return next((row for row in self.rows if row.width), None)

    def vectors(self, record: Mapping[str, Any], grid: Grid) -> np.ndarray:
        """The vectors of the columns that the model reads.

        Args:
          record: that `grid` was arranged from.
          grid: of `arrange`.

        Returns:
          float32 [S, width], 0 in columns whose row of `Vectors` holds none.
        """
        return self._vectors(record, grid.cells[:, : grid.targets.shape[1]])

    def vector_targets(self, record: Mapping[str, Any], grid: Grid) -> np.ndarray:
        """The same for the columns of the targets: float32 [S, width]."""
        return self._vectors(record, grid.cells[:, self.shift :])

    def links(self, grid: Grid, upstream: Reading, upstream_grid: Grid, family: str) -> np.ndarray:
        """Where another transformer has read what this one reads, to be fed with its hidden states.

        Args:
          grid: of this layout.
          upstream: layout of the other transformer.
          upstream_grid: of it, of the same record.
          family: that stands in both.

        Returns:
          int32 [S]: for each column that is read, the first column read of `upstream_grid` with the
          same item of the family; -1 where there is none. Of several rows that show the family in a
          column the topmost counts.

        Raises:
          UserError: one of the layouts lacks the family.
        """
        return _links(self._items(grid, family), upstream._items(upstream_grid, family))

    def copies(self, grid: Grid, family: str) -> np.ndarray:
        """How many columns in a row have shown the same item of a family before each.

        Returns:
          int32 [S]; 0 for the first, and where none stands.

        Raises:
          UserError: the layout lacks the family.
        """
        return _copies(self._items(grid, family))

    def restore(self, grid: Grid) -> dict[str, Restored]:
        """Inverse of `arrange` on what the layout keeps.

        Left out are streams without an item, and items that the grid lacks in one of their levels:
        the last ones under a "truncate" or "valid_only" end, or where decoding was cut short.
        """
        if self.has_text:
            return word_clock.restore(self.rows, self.families, grid)
        return restore(self.streams, grid, self.shift)

    def origins(self, clock: np.ndarray) -> np.ndarray:
        """Where the words (frames) stand whose items come next.

        Args:
          clock: int [C] of a grid.

        Returns:
          int32 [R, S]: for each row the last column of the tick to which the item of column s + 1
          belongs: a level with a delay of d words speaks of the word d words back. It is never
          after column s, and 0 where there is no such tick yet.
        """
        if self.shift == 0:
            return np.tile(np.arange(len(clock), dtype=np.int32), (len(self.rows), 1))
        ticks = clock[1:] - np.array([row.delay for row in self.rows])[:, None]
        return word_clock.last_columns(clock, ticks).clip(
            max=np.arange(len(clock) - 1, dtype=np.int32)
        )

    def ends(self, clock: np.ndarray) -> np.ndarray:
        """What `WordScheduler.init` takes of a prompt.

        Args:
          clock: int [C] of the prompt.

        Returns:
          int32 [T], the last column of its last tick, of the tick before, and so on as far back as
          the most delayed row speaks.
        """
        back = np.arange(max(1, *(row.delay for row in self.rows)))
        return word_clock.last_columns(clock, clock[-1] - back)

    def _vectors(self, record: Mapping[str, Any], cells: np.ndarray) -> np.ndarray:
        row = self.vector_row
        found = np.zeros((cells.shape[1], row.width if row else 0), np.float32)
        for number, stream in enumerate(self.streams):
            if isinstance(stream, Vectors):
                rows, columns = np.nonzero(cells["stream"] == number)
                values = stream.values(View(record, self.streams, name=self.name))
                found[columns] = values[cells["item"][rows, columns]]
        return found

    def _items(self, grid: Grid, family: str) -> np.ndarray:
        families = {stream.family for stream in self.streams}
        if family not in families:
            raise UserError(
                f"layout {self.name} has no stream {family!r}, only {', '.join(sorted(families))}",
                "link it by a stream that stands in both layouts",
            )
        return _items_of(self.streams, grid, family)


def _items_of(streams: Sequence[AnyStream], grid: Grid, family: str) -> np.ndarray:
    """int [S], the item of a family that the model reads in each column, in the topmost row that
    has one; -1 for none."""
    cells = grid.cells[:, : grid.targets.shape[1]]
    numbers = [number for number, stream in enumerate(streams) if stream.family == family]
    mine = np.isin(cells["stream"], numbers) & ~cells["hidden"]
    top = mine.argmax(0)[None]
    item = np.take_along_axis(cells["item"], top, axis=0)[0]
    return np.where(mine.any(0), item, -1)


def _links(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """int32 [S], for each item of `down` the first place in `up`; -1 where there is none."""
    first = {}
    for column, item in enumerate(up.tolist()):
        first.setdefault(item, column)
    first[-1] = -1
    return np.array([first.get(item, -1) for item in down.tolist()], np.int32)


def _copies(items: np.ndarray) -> np.ndarray:
    """int32 [S], how many places just before each hold the same item; 0 where there is none."""
    places = np.arange(len(items))
    begins = np.append(True, items[1:] != items[:-1])[: len(items)]
    since = places - np.maximum.accumulate(np.where(begins, places, 0))
    return np.where(items >= 0, since, 0).astype(np.int32)
