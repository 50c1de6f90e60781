"""Where the wall time of a run went, over all of its restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SPLIT = "time"  # of the lines of metrics.jsonl that hold the account


@dataclasses.dataclass
class Span:
    """What a `Goodput.spend` block took, once it has ended."""

    seconds: float = 0.0


class Goodput:
    """Seconds by what they went into.

    "start" (opening datasets, reading weights or a checkpoint), "compile" (the first step of a
    process), "data" (waiting for a batch), "step", "save" (what of it holds the steps up), "eval",
    "profile", "lost" (steps of a process that was killed before it saved them, which are done
    again), and "other". Goodput is the share of "step": all else is badput. What lies between two
    processes is not counted.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._began = time.monotonic()
        self._before = 0.0

    def started(self) -> None:
        """Counts everything until now as "start"."""
        self._spent["start"] = self._spent.get("start", 0.0) + time.monotonic() - self._began

    @contextlib.contextmanager
    def spend(self, on: str) -> Iterator[Span]:
        """Adds the time of the block to `on`."""
        began, span = time.monotonic(), Span()
        try:
            yield span
        finally:
            span.seconds = time.monotonic() - began
            self._spent[on] = self._spent.get(on, 0.0) + span.seconds

    def resume(self, lines: Sequence[Mapping[str, Any]], start: int) -> None:
        """Takes over the account of the processes before.

        Args:
          lines: of metrics.jsonl as those left it.
          start: updates in the checkpoint that this process continues from.
        """
        accounts = [line for line in lines if line["split"] == SPLIT]
        if not accounts:
            return
        last = _spent(accounts[-1])
        saved = [_spent(line) for line in accounts if line["step"] <= start]
        lost = last.get("step", 0.0) - (saved[-1].get("step", 0.0) if saved else 0.0)
        self._before = sum(last.values())
        for name, seconds in (last | {"lost": last.get("lost", 0.0) + lost}).items():
            if name != "other":
                self._spent[name] = self._spent.get(name, 0.0) + seconds
        self._spent["step"] = self._spent.get("step", 0.0) - lost

    def numbers(self) -> dict[str, float]:
        """ "goodput" (0 to 1) and "<name>_seconds", which add up to the wall time."""
        total = self._before + time.monotonic() - self._began
        spent = self._spent | {"other": max(total - sum(self._spent.values()), 0.0)}
        found = {f"{name}_seconds": seconds for name, seconds in spent.items()}
        return {"goodput": self._spent.get("step", 0.0) / max(total, 1e-9)} | found

    def describe(self) -> str:
        """The same as a sentence."""
        numbers = self.numbers()
        goodput = numbers.pop("goodput")
        parts = sorted(_spent(numbers).items(), key=lambda part: -part[1])
        named = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
        total = sum(numbers.values())
        return f"goodput {goodput:.0%}: of {total:.0f} s of all processes so far, {named}"


def _spent(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix("_seconds"): value
        for name, value in numbers.items()
        if name.endswith("_seconds")
    }
