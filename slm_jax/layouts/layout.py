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
from slm_jax.layouts.checks import check_rows, check_streams
from slm_jax.layouts.ctc import Ctc
from slm_jax.layouts.expression import Expression, Operator
from slm_jax.layouts.grid import Grid, Row
from slm_jax.layouts.machine import Machine
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.reading import Reading
from slm_jax.layouts.rows import delays_of
from slm_jax.layouts.scheduler import Scheduler
from slm_jax.layouts.text import check_lengths, text_of
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
class Layout(Reading):
    """How the streams of a record become the columns that a transformer sees.

    A record maps families to items that have `values` (int [n, levels]) and `index` (the word of
    each item, for text); layouts that align by time also read "words". With a `Text` row, a record
    that has no other stream of the layout is text only: the other rows stay at INIT and predict
    nothing. Streams of vectors have `values` float [n, width].

    Attributes:
      name: for people and error messages.
      of: the expression.
      initial: whether a column of INIT ids comes first; not where the expression begins with
        tokens of its own.
      shift: 1 where a column is predicted from the one before; 0 where it is predicted from
        itself (`Nar`, `Ctc`).
      upstream: of another transformer that reads the same text first, one id a column, and feeds
        its states to this one's (`links`).
    """

    name: str
    of: Expression
    initial: bool = True
    shift: int = 1
    upstream: Layout | None = None

    def __post_init__(self) -> None:
        wanted = "column" if text_of(self.of) is None else "word"
        for delay in delays_of(self.of):
            if delay.clock != wanted:
                reason = "no Text row gives words" if wanted == "column" else "Text gives words"
                raise ValueError(f"of: Delay.clock must be {wanted!r} ({reason})")
        check_rows(self.rows, self.initial)
        if self.has_text and self.optional:
            raise ValueError("of: a Text row is read without all speech or with all: not optional")
        if (self.shift == 0) != self.holds(Nar, Ctc) or self.shift not in (0, 1):
            raise ValueError("shift must be 0 with Nar and Ctc, and 1 without")
        if self.upstream is not None and len(self.upstream.streams) != 1:
            raise ValueError("upstream must have one stream, the text that both read")

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Top to bottom; the text row of a layout with words as its clock is row 0."""
        return self.of.rows

    @functools.cached_property
    def streams(self) -> tuple[AnyStream, ...]:
        """The numbers of cells point here."""
        return self.of.streams

    @functools.cached_property
    def families(self) -> tuple[str, ...]:
        """The streams that are read from a dataset; it may lack those of `optional`."""
        words = ("words",) if self.holds(Aligned, Machine, Spans) else ()
        return (*dict.fromkeys(stream.family for stream in self._read), *words)

    @property
    def _read(self) -> tuple[AnyStream, ...]:
        """The streams of this layout and of `upstream`."""
        return (*self.streams, *(self.upstream.streams if self.upstream else ()))

    @functools.cached_property
    def optional(self) -> frozenset[str]:
        """Those of `families` that a dataset, or a record, need not have."""
        needed = {stream.family for stream in self.streams if not stream.optional}
        return frozenset(stream.family for stream in self.streams) - needed

    @property
    def packs(self) -> bool:
        """Whether records may share a row of a batch: not where all columns of it are predicted at
        once (`Nar`, `Ctc`)."""
        return self.shift == 1

    def holds(self, *kinds: type[Operator]) -> bool:
        """Whether an operator of these kinds stands in the expression."""
        return _holds(self.of, *kinds)

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
        upstream = [] if self.upstream is None else [self.upstream.fingerprint()]
        return fingerprint(_tree(self.of), self.initial, self.shift, *upstream)

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
          UserError: naming the stream that is missing, or whose vocabulary, width or rate differs.
        """
        wanted = [
            stream
            for stream in self._read
            if (families is None or stream.family in families)
            and (stream.family in specs or not stream.optional)
        ]
        check_streams(self.name, wanted, specs, source)

    def length(self, record: Mapping[str, Any]) -> int:
        """Columns that `arrange(record)` feeds to the model, or the most of them where chance
        decides; those of `upstream` if they are more."""
        if self.upstream is not None:
            own = dataclasses.replace(self, upstream=None).length(record)
            return max(own, self.upstream.length(record))
        view = self._view(record, None)
        if self.has_text:
            return word_clock.length(self.of, view)
        return max(0, self.of.columns(view) + self.initial - self.shift)

    def place(self, record: Mapping[str, Any], key: Sequence[int] | None = None) -> Placement:
        """The cells behind `arrange`."""
        return self._place(self._view(record, key))

    def arrange(self, record: Mapping[str, Any], key: Sequence[int] | None = None) -> Grid:
        """Lays one record out.

        Args:
          record: family -> item.
          key: integers, such as (seed, step, row), from which all chance is drawn.

        Raises:
          UserError: a stream is missing, streams disagree in length, an id is out of range.
        """
        view = self._view(record, key)
        cells, clock = self._place(view)
        ids = cells["id"].copy()
        for number, stream in enumerate(self.streams):
            mine = cells["stream"] == number
            if mine.any():
                ids[mine] = stream.ids(view)[cells["item"][mine], cells["level"][mine]]
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

    def _place(self, view: View) -> Placement:
        if self.has_text:
            return Placement(*word_clock.place(self.of, view))
        cells = self.of.place(view)
        if self.initial:
            cells = np.concatenate([word_clock.initial(self.rows), cells], axis=1)
        return Placement(cells, np.arange(cells.shape[1]) - self.initial)

    def _view(self, record: Mapping[str, Any], key: Sequence[int] | None) -> View:
        rng = None if key is None else np.random.default_rng([int(k) for k in key])
        view = View(record, self.streams, rng, self.name)
        missing = [s.family for s in self.streams if not s.optional and s.family not in record]
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


def _holds(expression: Operator, *kinds: type) -> bool:
    return isinstance(expression, kinds) or any(_holds(p, *kinds) for p in expression.inside)


def _tree(value: Any) -> Any:
    """A JSON-able form of an expression that names its operators."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    return [_tree(item) for item in value] if isinstance(value, tuple) else value
