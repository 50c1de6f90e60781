"""What a run writes down: metrics.jsonl, TensorBoard, and where its time went."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from slm_jax.training.distributed import is_main

FILE = "metrics.jsonl"


class Deferred:
    """Hands the metrics of a step out when the next one is already running.

    Reading a value waits for its step to finish; reading that of the step before keeps the device
    busy.
    """

    def __init__(self) -> None:
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Keeps `metrics` (device arrays) and returns the previous (step, metrics) on the host."""
        previous, self._held = self._held, (step, metrics)
        return jax.device_get(previous)

    def flush(self) -> tuple[int, Any] | None:
        """The last (step, metrics) on the host."""
        previous, self._held = self._held, None
        return jax.device_get(previous)


class Log:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard; other processes than the first write none.

    One line a logged step: {"step", "split" ("train" or "eval"), "losses" {name: mean},
    "tokens_per_second", "time" (seconds since the epoch), ...}. A run that continues from step s
    drops what a killed process had written after s.
    """

    def __init__(self, run_dir: Path, start: int):
        self.path = run_dir / FILE
        self._writer = None
        if is_main():
            self._keep_until(start)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, split: str, losses: Mapping[str, float], **numbers: float) -> None:
        """Adds a line; each number also becomes a TensorBoard scalar."""
        if self._writer is None:
            return
        line = {"step": step, "split": split, "losses": dict(losses), "time": time.time()}
        self._file.write(json.dumps(line | numbers) + "\n")
        self._file.flush()
        for name, value in losses.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        for name, value in numbers.items():
            self._writer.add_scalar(f"{split}_{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._file.close()
            self._writer.close()

    def _keep_until(self, start: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in read(self.path) if line["step"] <= start]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one cut short by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


class Goodput:
    """Seconds by what they went into: "start", "compile", "data", "step", "save", "eval"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def spend(self, on: str) -> Iterator[None]:
        """Adds the time of the block to `on`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[on] = self.seconds.get(on, 0.0) + time.monotonic() - began

    def in_seconds(self) -> dict[str, float]:
        """The same under names that carry the unit."""
        return {f"{name}_seconds": value for name, value in self.seconds.items()}

    def fraction(self) -> float:
        """Share of the time since construction that went into steps."""
        return self.seconds.get("step", 0.0) / max(time.monotonic() - self._began, 1e-9)


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """(sum, weight) pairs to means; a loss without weight in these data is left out."""
    return {name: float(total / weight) for name, (total, weight) in sums.items() if weight > 0}


def add(
    left: Mapping[str, tuple[Any, Any]], right: Mapping[str, tuple[Any, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Sums and weights of two sets of data."""
    return {name: tuple(np.add(left.get(name, (0.0, 0.0)), pair)) for name, pair in right.items()}
