"""What a run writes down: metrics.jsonl, and the same for those who draw curves."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slm_jax.training import disk
from slm_jax.training.distributed import is_main
from slm_jax.training.writers import Clip, Writer

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
    """Appends to RUN/metrics.jsonl and tells `writers`; of several processes, the first does.

    One line a logged step: {"step", "split" ("train", "eval" or "time"), "losses" {name: mean},
    "time" (seconds since the epoch), and numbers}. A run that continues from step s drops what a
    killed process had written after s.
    """

    def __init__(self, run_dir: Path, start: int, writers: Sequence[Writer]):
        self.path, self._writers, self._file = run_dir / FILE, writers, None
        if not is_main():
            return
        kept = [line for line in read(self.path) if line["step"] <= start]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(
        self, step: int, split: str, losses: Mapping[str, float], **numbers: float | str
    ) -> None:
        """Adds a line; text is for the file alone."""
        if self._file is None:
            return
        line = {"step": step, "split": split, "losses": dict(losses), "time": time.time()}
        with disk.errors(self.path.parent, "what was measured"):
            self._file.write(json.dumps(line | numbers) + "\n")
            self._file.flush()
        named = {f"{split}/{name}": value for name, value in losses.items()}
        named |= {
            f"{split}_{name}": value
            for name, value in numbers.items()
            if not isinstance(value, str)
        }
        for writer in self._writers:
            writer.numbers(step, named)

    def hear(self, step: int, clips: Sequence[Clip]) -> None:
        """Hands audio to the writers."""
        for writer in self._writers:
            for clip in clips:
                writer.clip(step, clip)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for writer in self._writers:
            writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none without it, and one cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # no JSON, or no text at all
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """(sum, weight) pairs to means; a loss without weight in these data is left out."""
    return {name: float(total / weight) for name, (total, weight) in sums.items() if weight > 0}


def add(
    left: Mapping[str, tuple[Any, Any]], right: Mapping[str, tuple[Any, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Sums and weights of two sets of data, float64: in float32 a long set would round each off."""
    return {
        name: tuple(np.add(left.get(name, (0.0, 0.0)), pair, dtype=np.float64))
        for name, pair in right.items()
    }
