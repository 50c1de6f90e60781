"""Long measurements in stages: what is being measured, and about how long all of it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_CHUNK = 16  # utterances that a function gets at a time
_SECONDS = 10.0  # between two lines of one stage


class Stages:
    """Runs each stage over all utterances, with a line on stderr now and then.

    Args:
      plan: the kind of each stage to come, in order; stages of one kind take about equally long.
      count: utterances.
    """

    def __init__(self, plan: Sequence[str], count: int):
        self._plan, self._count = list(plan), count
        self._done = 0
        self._spent: dict[str, tuple[float, int]] = {}  # kind -> seconds, utterances

    def map(self, kind: str, title: str, function: Callable[[list[int]], Sequence]) -> list[Any]:
        """`function` of all utterances, given their numbers a few at a time.

        Raises:
          ValueError: the plan has another kind of stage here.
        """
        if self._done >= len(self._plan) or self._plan[self._done] != kind:
            raise ValueError(f"stage {self._done} of {self._plan} is not {kind!r}")
        results: list[Any] = []
        said = time.monotonic()
        self._say(title, 0)
        for at in range(0, self._count, _CHUNK):
            rows = list(range(at, min(at + _CHUNK, self._count)))
            began = time.monotonic()
            results += function(rows)
            now = time.monotonic()
            seconds, utterances = self._spent.get(kind, (0.0, 0))
            self._spent[kind] = seconds + now - began, utterances + len(rows)
            if now - said > _SECONDS:
                said = now
                self._say(title, len(results))
        self._done += 1
        return results

    def _say(self, title: str, done: int) -> None:
        left = self._left(done)
        eta = f", ETA {int(left) // 60}:{int(left) % 60:02d}" if left is not None else ""
        line = f"[{self._done + 1}/{len(self._plan)}] {title}: {done}/{self._count}{eta}"
        print(line, file=sys.stderr, flush=True)

    def _left(self, done: int) -> float | None:
        """Seconds for what is left; a kind not met yet is taken for an average one."""
        rates = {kind: seconds / n for kind, (seconds, n) in self._spent.items()}
        if not rates:
            return None
        usual = sum(rates.values()) / len(rates)
        current, *later = [rates.get(kind, usual) for kind in self._plan[self._done :]]
        return current * (self._count - done) + sum(later) * self._count
