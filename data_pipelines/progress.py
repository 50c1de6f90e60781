"""Progress of one stage: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

PLAIN_EVERY_SECONDS = 5.0


class Progress:
    """Counts the items of a stage; use as a context manager.

    Args:
      stage: its name.
      total: items in all.
      done: items that an earlier run finished; they count in no rate.
    """

    def __init__(self, stage: str, total: int, done: int = 0):
        self._stage = stage
        self._total = total
        self._before = self._done = self._reported = done
        self._audio = 0.0
        self._started = self._printed = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
            self._bar = RichProgress(
                *columns, TextColumn("{task.fields[rate]}"), console=Console(stderr=True)
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._stage, total=self._total, completed=self._done, rate=""
            )
        return self

    def advance(self, items: int, audio_seconds: float = 0.0) -> None:
        """Books finished items, and how many seconds of audio were in them."""
        self._done += items
        self._audio += audio_seconds
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif time.monotonic() - self._printed >= PLAIN_EVERY_SECONDS:
            self._print()

    def _rate(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        new = self._done - self._before
        if not new:
            return ""
        left = (self._total - self._done) * elapsed / new
        times = f", {self._audio / elapsed:.1f}x real time" if self._audio else ""
        return f"{new / elapsed:.1f}/s{times}, ETA {int(left) // 60}:{int(left) % 60:02d}"

    def _print(self) -> None:
        self._printed, self._reported = time.monotonic(), self._done
        print(
            f"{self._stage}: {self._done}/{self._total}  {self._rate()}",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._done > self._reported:
            self._print()
