"""Batches as a pure function of (seed, step).

    step -> global rows -> (part of the mixture, row of its packing plan) -> records -> grids

Every arrow is arithmetic or a look-up, so that no host counts, restarts or thread timings enter:
resuming is asking for another step. `slm_jax.data.ahead` runs the function in threads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from grain.experimental import index_shuffle

from slm_jax.data import packing
from slm_jax.data.ahead import Reading, ahead
from slm_jax.data.dataset import Split
from slm_jax.data.registry import DatasetSpec, MixtureSpec
from slm_jax.data.rows import pack_row, stack
from slm_jax.data.schema import Record
from slm_jax.errors import UserError
from slm_jax.layouts import Layout
from slm_jax.paths import cache_dir
from slm_jax.streams import fingerprint

Batch = dict[str, np.ndarray]
_ROUNDS = 4  # of the Feistel cipher behind index_shuffle


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    records: Split
    plan: packing.Plan
    seed: int

    def row(self, index: int) -> np.ndarray:
        """Records of row `index` of an endless stream of epochs, each in an order of its own."""
        epoch, place = divmod(index, len(self.plan))
        return self.plan.row(self.shuffled(epoch, place))

    def shuffled(self, epoch: int, place: int) -> int:
        seed = int(fingerprint(self.seed, self.records.fingerprint, epoch)[:8], 16)
        return index_shuffle(place, max_index=len(self.plan) - 1, seed=seed, rounds=_ROUNDS)


class Loader:
    """Packed batches of a mixture under a layout.

    A batch has B rows as `slm_jax.data.rows.pack_row` makes them.

    Args:
      mixture: what to draw from, and how much of each.
      layout: how a record becomes columns.
      batch_size: B of the global batch, over all hosts.
      seq_len: S.
      seed: of packing, order and whatever is random in the layout.
      split: of each dataset.
      cache: folder for packing plans; `cache_dir()/packing` if None.
      reading: threads that make batches ahead, and how long they may take; None for the defaults.
    Raises:
      UserError: a dataset is missing or damaged, does not fit the layout, or has no record short
        enough for `seq_len`.
    """

    def __init__(
        self,
        mixture: MixtureSpec,
        layout: Layout,
        batch_size: int,
        seq_len: int,
        seed: int,
        *,
        split: str = "train",
        cache: Path | None = None,
        reading: Reading | None = None,
    ):
        self.layout = layout
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self._reading = reading or Reading()
        self._at: dict[int, tuple[Split, int]] = {}  # batch -> the record being read for it
        self._rates = mixture.rates
        cache = cache or cache_dir() / "packing"
        self._parts = [self._part(spec, split, cache) for spec in mixture.datasets]
        _check_same_tokenizers(self._parts)

    def batch(self, step: int, rows: Sequence[int] | np.ndarray | None = None) -> Batch:
        """Batch `step`; of its global rows those asked for, or all."""
        return self._stack(step, rows, self._train_row)

    def origin(self, step: int, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Where rows of batch `step` come from: row, dataset, and index and id of each record."""
        found = []
        for row in map(int, rows):
            part, index = choose(self._rates, step * self.batch_size + row)
            chosen = self._parts[part]
            records = [
                {"index": place, "id": next(iter(chosen.records[place].values())).id}
                for place in chosen.row(index).tolist()
            ]
            found.append({"row": row, "dataset": chosen.name, "records": records})
        return found

    def iterate(
        self,
        start: int,
        stop: int | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> Generator[Batch]:
        """Batches `start`, `start + 1`, ... up to `stop`, made ahead; close it when done.

        Raises:
          UserError: a record is damaged, or reading takes longer than `Reading.stop`.
        """
        steps = itertools.count(start) if stop is None else range(start, stop)
        return ahead(lambda step: self.batch(step, rows), steps, self._reading, self._source)

    def one_pass(self, rows: Sequence[int] | np.ndarray | None = None) -> Generator[Batch]:
        """Every packed row of every part once, in the plan's order, for evaluation.

        The last batch is filled up with rows of padding, so that all batches have one shape. They
        are made ahead, and raise, as those of `iterate`.
        """
        packed = [(part, index) for part in self._parts for index in range(len(part.plan))]

        def make_row(batch: int, row: int) -> Batch:
            place = batch * self.batch_size + row
            key = self.seed, place
            if place >= len(packed):
                return pack_row(self.layout, self.seq_len, (), key)
            part, index = packed[place]
            return self._row(batch, part, part.plan.row(index), key)

        def make(batch: int) -> Batch:
            return self._stack(batch, rows, make_row)

        numbers = range(-(-len(packed) // self.batch_size))
        return ahead(make, numbers, self._reading, self._source)

    def summary(self) -> dict[str, dict[str, float]]:
        """For each dataset: its rate, records, packed rows, how full they are and could be at best,
        and records skipped.
        """
        return {
            part.name: {
                "rate": float(rate),
                "records": len(part.records),
                "rows": len(part.plan),
                "fill": part.plan.fill(self.seq_len),
                "possible": packing.possible_fill(part.plan.lengths, self.seq_len),
                "skipped": part.plan.skipped,
            }
            for part, rate in zip(self._parts, self._rates, strict=True)
        }

    def _part(self, spec: DatasetSpec, split: str, cache: Path) -> _Part:
        families = [
            family
            for family in self.layout.families
            if family in spec.families or not (spec.text_only or family in self.layout.optional)
        ]
        if not families:
            wanted = ", ".join(self.layout.families)
            message = f"dataset {spec.name!r} has none of the layout's streams: {wanted}"
            raise UserError(message, f"add one of them to {spec.root}, or take another dataset")
        dataset = spec.open(families)
        # A text-only dataset lacks the speech streams.
        self.layout.check(dataset.specs, families, f"dataset {spec.name!r}")
        records = dataset.split(split, families)
        key = fingerprint(records.fingerprint, self.layout.fingerprint())

        def measure() -> np.ndarray:
            return np.array([self.layout.length(record) for record in records], np.int64)

        lengths = packing.cached_array(cache, f"lengths-{key}", measure)
        room = lengths
        if not self.layout.packs:  # each record that fits takes a whole row
            fits = (lengths > 0) & (lengths <= self.seq_len)
            room, key = np.where(fits, self.seq_len, lengths), f"{key}-apart"
        plan = packing.cached_plan(cache, room, key, self.seq_len, self.seed)
        plan = dataclasses.replace(plan, lengths=lengths)
        if not len(plan):
            shortest = f"its shortest takes {lengths.min()}" if len(lengths) else "it is empty"
            raise UserError(
                f"no record of {spec.root} ({split}) fits into {self.seq_len} columns: {shortest}",
                "raise seq_len, or give the dataset more records",
            )
        return _Part(spec.name, records, plan, self.seed)

    def _stack(
        self,
        number: int,
        rows: Sequence[int] | np.ndarray | None,
        make_row: Callable[[int, int], Batch],
    ) -> Batch:
        rows = range(self.batch_size) if rows is None else rows
        batch = stack([make_row(number, int(row)) for row in rows])
        self._at.pop(number, None)
        return batch

    def _train_row(self, step: int, row: int) -> Batch:
        part, index = choose(self._rates, step * self.batch_size + row)
        chosen = self._parts[part]
        return self._row(step, chosen, chosen.row(index), (self.seed, step, row))

    def _row(self, number: int, part: _Part, records: np.ndarray, key: tuple[int, ...]) -> Batch:
        def read() -> Iterator[Record]:
            for index in records.tolist():
                self._at[number] = part.records, index
                yield part.records[index]

        return pack_row(self.layout, self.seq_len, read(), key)

    def _source(self, number: int) -> str:
        """What is being read for the batch of that number."""
        at = self._at.get(number)
        return "its first record" if at is None else at[0].where(at[1])


def host_rows(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """The contiguous rows of the global batch that a host makes when each makes its own."""
    if batch_size % process_count:
        message = f"a batch of {batch_size} rows does not divide over {process_count} processes"
        raise UserError(message, "make the batch size a multiple of the number of processes")
    share = batch_size // process_count
    return np.arange(process_index * share, (process_index + 1) * share)


def choose(rates: Sequence[Fraction], row: int) -> tuple[int, int]:
    """(part, index within the part) of row `row` of a stream mixed at `rates`.

    Part 0 takes row n exactly when floor((n + 1) r) > floor(n r): after n rows it has had
    floor(n r) of them, never off by one. The rows left over are divided likewise.
    """
    rest = Fraction(1)
    for part, rate in enumerate(rates[:-1]):
        share = rate / rest
        before = row * share.numerator // share.denominator
        if (row + 1) * share.numerator // share.denominator > before:
            return part, before
        row -= before
        rest -= rate
    return len(rates) - 1, row


def _check_same_tokenizers(parts: Sequence[_Part]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for part in parts:
        for family, spec in part.records.specs.items():
            name, known = seen.setdefault(family, (part.name, spec.fingerprint))
            if known != spec.fingerprint:
                raise UserError(
                    f"stream {family!r} of {name!r} and of {part.name!r} come from different "
                    f"tokenizers ({known} and {spec.fingerprint})",
                    "tokenize both with the same one, under the same or another family name",
                )
