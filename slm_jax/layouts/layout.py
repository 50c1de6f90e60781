"""A layout: an expression that turns records into grids, and grids back into streams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.errors import UserError
from slm_jax.layouts import word_clock
from slm_jax.layouts.cells import View, named, specials
from slm_jax.layouts.chance import Nar
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.operators import (
    Expression,
    Operator,
    Stream,
    check_lengths,
    text_of,
)
from slm_jax.layouts.rows import delays_of
from slm_jax.layouts.scheduler import Scheduler
from slm_jax.layouts.timed import Aligned, Spans
from slm_jax.layouts.word_scheduler import WordScheduler
from slm_jax.streams import StreamSpec, fingerprint


class Placement(NamedTuple):
    """Where the items of a record go.

    Attributes:
      cells: `CELL` [R, C].
      clock: int [C], tick of each column; an initial column has -1.
    """

    cells: np.ndarray
    clock: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the streams of a record become the columns that a transformer sees.

    A record maps families to items that have `values` (int [n, levels]) and `index` (the word of
    each item, for text); layouts that align by time also read "words". With a `Text` row, a record
    that has no other stream of the layout is text only: the other rows stay at INIT and predict
    nothing.

    Attributes:
      name: for people and error messages.
      of: the expression.
      initial: whether a column of INIT ids comes first; not where the expression begins with
        tokens of its own.
      shift: 1 where a column is predicted from the one before; 0 where it is predicted from
        itself (`Nar`).
    """

    name: str
    of: Expression
    initial: bool = True
    shift: int = 1

    def __post_init__(self) -> None:
        wanted = "column" if text_of(self.of) is None else "word"
        for delay in delays_of(self.of):
            if delay.clock != wanted:
                reason = "no Text row gives words" if wanted == "column" else "Text gives words"
                raise ValueError(f"of: Delay.clock must be {wanted!r} ({reason})")
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"of: a stream stands in it twice: {', '.join(names)}")
        if (self.shift == 0) != _holds(self.of, Nar) or self.shift not in (0, 1):
            raise ValueError("shift must be 0 with Nar, and 1 without")

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Top to bottom; the text row of a layout with words as its clock is row 0."""
        return self.of.rows

    @functools.cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The numbers of cells point here."""
        return self.of.streams

    @functools.cached_property
    def families(self) -> tuple[str, ...]:
        """The streams that a dataset must have."""
        words = ("words",) if _holds(self.of, Aligned, Spans) else ()
        return (*dict.fromkeys(stream.family for stream in self.streams), *words)

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
        return fingerprint(_tree(self.of), self.initial, self.shift)

    def check(
        self,
        specs: Mapping[str, StreamSpec],
        families: Sequence[str] | None = None,
        source: str = "the dataset",
    ) -> None:
        """Compares the layout with the streams of a dataset, before anything is compiled.

        A layout may take only the coarse levels of a stream.

        Args:
          specs: of the dataset.
          families: those to look at; all if None.
          source: what an error calls the dataset.

        Raises:
          UserError: naming the stream that is missing, or whose vocabulary or rate differs.
        """
        for stream in self.streams:
            family = stream.family
            if families is not None and family not in families:
                continue
            if family not in specs:
                raise UserError(
                    f"layout {self.name}: {source} has no stream {family!r}, only "
                    f"{', '.join(sorted(specs))}",
                    f"tokenize it with {family}, or name another family in the layout",
                )
            spec = specs[family]
            if spec.vocab[stream.first : stream.first + len(stream.vocab)] != stream.vocab:
                raise UserError(
                    f"layout {self.name}: stream {family!r} of {source} has codes per level "
                    f"{spec.vocab}, the layout says {stream.vocab} from level {stream.first} on",
                    "set the layout's vocab to that of the tokenizer that made the stream",
                )
            if stream.rate and stream.rate != spec.clock:
                raise UserError(
                    f"layout {self.name}: stream {family!r} of {source} has {spec.clock} items a "
                    f"second, the layout says {stream.rate}",
                    "set Stream.rate to that of the tokenizer",
                )

    def length(self, record: Mapping[str, Any]) -> int:
        """Columns that `arrange(record)` feeds to the model, or the most of them where chance
        decides."""
        view = self._view(record, None)
        if self.has_text:
            return word_clock.length(self.of, view)
        return max(0, self.of.columns(view) + self.initial - self.shift)

    def place(self, record: Mapping[str, Any], key: Sequence[int] | None = None) -> Placement:
        """The cells behind `arrange`."""
        view = self._view(record, key)
        if self.has_text:
            return Placement(*word_clock.place(self.of, view))
        cells = self.of.place(view)
        if self.initial:
            cells = np.concatenate([word_clock.initial(self.rows), cells], axis=1)
        return Placement(cells, np.arange(cells.shape[1]) - self.initial)

    def arrange(self, record: Mapping[str, Any], key: Sequence[int] | None = None) -> Grid:
        """Lays one record out.

        Args:
          record: family -> item.
          key: integers, such as (seed, step, row), from which all chance is drawn.

        Raises:
          UserError: a stream is missing, streams disagree in length, an id is out of range.
        """
        cells, clock = self.place(record, key)
        ids = cells["id"].copy()
        for number, stream in enumerate(self.streams):
            mine = cells["stream"] == number
            if mine.any():
                table = self._ids(record, stream)
                ids[mine] = table[cells["item"][mine], cells["level"][mine]]
        content = np.where(cells["hidden"], cells["id"], ids).astype(np.int32)
        targets = np.where(cells["said"] >= 0, cells["said"], ids).astype(np.int32)
        weights = cells["weight"]
        return Grid(
            content,
            targets[:, self.shift :],
            weights[:, self.shift :],
            clock.astype(np.int32),
            cells,
        )

    def restore(self, grid: Grid) -> dict[str, Restored]:
        """Inverse of `arrange` on what the layout keeps.

        Left out are streams without an item, and items that the grid lacks in one of their levels:
        the last ones under a "truncate" or "valid_only" end, or where decoding was cut short.
        """
        if self.has_text:
            return word_clock.restore(self.rows, self.families, grid)
        ids = grid.content
        if self.shift == 0:
            ids = np.where(grid.cells["hidden"], grid.targets, ids)
        found: dict[str, dict[int, dict[int, int]]] = {}
        for number, stream in enumerate(self.streams):
            for level, (low, _) in enumerate(stream.ranges):
                mine = (grid.cells["stream"] == number) & (grid.cells["level"] == level)
                items, values = grid.cells["item"][mine], ids[mine] - low
                levels = found.setdefault(stream.family, {})
                levels.setdefault(stream.first + level, {}).update(zip(items, values, strict=True))
        streams: dict[str, Restored] = {}
        for family, levels in found.items():
            # The finer levels that a NAR stage leaves for later are no loss.
            present = [level for level in sorted(levels) if levels[level] or self.shift]
            found_in = [set(levels[level]) for level in present]
            kept = sorted(set.intersection(*found_in)) if found_in else []
            if kept:
                values = [[levels[level][item] for level in present] for item in kept]
                streams[family] = Restored(np.array(values, np.int32), None, np.array(kept))
        return streams

    def dropped(
        self, record: Mapping[str, Any], key: Sequence[int] | None = None
    ) -> dict[str, list[int]]:
        """Row name of each level -> the items of it that stand nowhere, where there are any."""
        cells = self.place(record, key).cells
        lost = {}
        for number, stream in enumerate(self.streams):
            if stream.family not in record:
                continue
            for level in range(len(stream.vocab)):
                mine = (cells["stream"] == number) & (cells["level"] == level)
                count = len(record[stream.family].values)
                missing = sorted(set(range(count)) - set(cells["item"][mine].tolist()))
                if missing:
                    lost[f"{stream.family}.{stream.first + level}"] = missing
        return lost

    def scheduler(self, starts_word: np.ndarray | None = None) -> WordScheduler | Scheduler:
        """The rule that turns sampled ids into columns while decoding.

        Args:
          starts_word: bool [V], whether a text id begins a word (`word_starts`); only with a
            `Text` row.
        """
        if self.has_text:
            return WordScheduler.of(self.rows, self.tail, starts_word)
        return Scheduler.of(self.of)

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

    def arrange_prompt(self, record: Mapping[str, Any]) -> Grid:
        """The columns from the initial one to that of the last word's last id, to be continued."""
        grid = self.arrange(record)
        words = word_clock.count(self.of, self._view(record, None))
        stop = int((grid.clock < words).sum())
        return Grid(
            grid.content[:, :stop],
            grid.targets[:, : stop - 1],
            grid.weights[:, : stop - 1],
            grid.clock[:stop],
            grid.cells[:, :stop],
        )

    def collect(
        self, content: np.ndarray, clock: np.ndarray, cells: np.ndarray | None = None
    ) -> Grid:
        """A grid of decoded columns, for `restore`.

        Args:
          content: int [R, C], prompt and generated columns with the initial one.
          clock: int [C], tick of each column, -1 for the initial one.
          cells: `CELL` [R, C]; a layout whose clock is words reads them off the clock.
        """
        content = np.asarray(content, np.int32)
        weights = np.zeros((content.shape[0], content.shape[1] - 1), np.float32)
        cells = specials(content.shape, 0) if cells is None else cells
        return Grid(content, content[:, 1:], weights, np.asarray(clock, np.int32), cells)

    def _view(self, record: Mapping[str, Any], key: Sequence[int] | None) -> View:
        rng = None if key is None else np.random.default_rng([int(k) for k in key])
        view = View(record, self.streams, rng, self.name)
        missing = [s.family for s in self.streams if s.family not in record]
        only_text = self.has_text and len(set(missing)) == len(set(self.families)) - 1
        if missing and not (only_text and self.families[0] in record):
            raise UserError(
                f"layout {self.name}: {named(record)} has no stream "
                f"{', '.join(dict.fromkeys(missing))}",
                "tokenize the dataset with it, or name another family in the layout",
            )
        if self.has_text:
            word_clock.check(self.of, view)
        check_lengths(self.of, view)
        return view

    def _ids(self, record: Mapping[str, Any], stream: Stream) -> np.ndarray:
        """int [n, levels] of a stream, with its offsets."""
        values = np.asarray(record[stream.family].values)
        last = stream.first + len(stream.vocab)
        if last > values.shape[1]:
            problem = f"has {values.shape[1]} levels, the layout wants level {last - 1}"
        else:
            values = values[:, stream.first : last]
            beyond = ((values < 0) | (values >= np.array(stream.vocab))).any(0)
            if not beyond.any():
                return values + np.array([low for low, _ in stream.ranges])
            level = int(beyond.argmax())
            problem = f"has ids outside [0, {stream.vocab[level]}) in level {stream.first + level}"
        raise UserError(
            f"layout {self.name}: stream {stream.family!r} of {named(record)} {problem}",
            "set the layout's vocab to that of the tokenizer that made the stream",
        )


def _holds(expression: Operator, *kinds: type) -> bool:
    return isinstance(expression, kinds) or any(_holds(p, *kinds) for p in expression.inside)


def _tree(value: Any) -> Any:
    """A JSON-able form of an expression that names its operators."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    return [_tree(item) for item in value] if isinstance(value, tuple) else value
