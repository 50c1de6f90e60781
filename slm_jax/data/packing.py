"""Packing plans: which records share a row of the batch.

A plan is a function of (dataset, layout, row length, seed) and nothing else, and is kept on disk
under the digest of those. It is made once; epochs visit its rows in different orders, so that row r
of the stream is a look-up, however far away it is.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slm_jax.data.shards import disk_errors

_VERSION = 1  # part of every key; raise it when the algorithm changes


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of records.

    Attributes:
      order: int64 [packed records], record indices row by row.
      starts: int64 [rows + 1]; row r holds `order[starts[r]:starts[r + 1]]`.
      lengths: int64 [records], columns of each record of the dataset.
    """

    order: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> np.ndarray:
        """Record indices of a row, in the order of their columns."""
        return self.order[self.starts[index] : self.starts[index + 1]]

    @property
    def skipped(self) -> int:
        """Records longer than a row (or empty), which no row holds."""
        return len(self.lengths) - len(self.order)

    def fill(self, seq_len: int) -> float:
        """Share of the columns that hold a record."""
        return float(self.lengths[self.order].sum() / max(1, len(self) * seq_len))


def pack(lengths: np.ndarray, seq_len: int, seed: int) -> Plan:
    """Best fit decreasing: records by falling length, each into the fullest row that takes it.

    Records of one length come in an order drawn from `seed`; a record longer than `seq_len` is left
    out, and counted by `Plan.skipped`, rather than cut: half an utterance has no end to learn.
    """
    lengths = np.asarray(lengths, np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    shuffled = shuffled[(lengths[shuffled] > 0) & (lengths[shuffled] <= seq_len)]
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(seq_len + 1)]  # open rows by columns left
    spaces = 0  # bit s is set when by_space[s] has rows
    for record in shuffled[np.argsort(-lengths[shuffled], kind="stable")].tolist():
        length = int(lengths[record])
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(record)
        if space > length:
            by_space[space - length].append(row)
            spaces |= 1 << (space - length)
    sizes = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    order = np.array([record for row in rows for record in row], np.int64)
    return Plan(order, sizes, lengths)


def possible_fill(lengths: np.ndarray, seq_len: int) -> float:
    """Share of the columns that no packing of the records that fit can exceed.

    Two records longer than half a row never share one. Where `short` is the least length that
    counts, a record longer than seq_len - short is alone in its row, one longer than half a row
    leaves some columns of it, and the others fill those first (bound L2 of Martello & Toth 1990,
    Knapsack Problems, ch. 8).
    """
    lengths = np.asarray(lengths, np.int64)
    lengths = lengths[(lengths > 0) & (lengths <= seq_len)]
    records = np.bincount(lengths, minlength=seq_len + 1).cumsum()  # up to that length
    columns = np.bincount(lengths, lengths, minlength=seq_len + 1).cumsum()
    half = seq_len // 2
    short = np.arange(1, half + 1)
    shared = records[seq_len - short] - records[half]  # rows of a long record and some short ones
    left = shared * seq_len - (columns[seq_len - short] - columns[half])
    others = columns[half] - columns[short - 1]
    rows = records[-1] - records[half] + np.maximum(0, np.ceil((others - left) / seq_len))
    return float(columns[-1] / (max(1, rows.max(initial=records[-1] - records[half])) * seq_len))


def cached_plan(
    cache: Path, lengths: np.ndarray, lengths_key: str, seq_len: int, seed: int
) -> Plan:
    """`pack`, remembered in the folder `cache`."""
    key = f"plan-{lengths_key}-{seq_len}-{seed}"

    def build() -> np.ndarray:
        plan = pack(lengths, seq_len, seed)
        return np.concatenate([[len(plan)], plan.starts, plan.order])

    flat = cached_array(cache, key, build)
    end = int(flat[0]) + 2
    return Plan(flat[end:], flat[1:end], lengths)


def cached_array(cache: Path, key: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """The int64 array of that key in the folder, made by `build` if it is not there."""
    path = Path(cache) / f"{key}-v{_VERSION}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or cut short by a crash of the machine
        array = np.asarray(build(), np.int64)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, array)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return array
