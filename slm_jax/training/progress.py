"""What a person watching the run sees: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def speech_loss(losses: Mapping[str, float]) -> float | None:
    """Mean over the speech levels, None where there is none."""
    values = [value for name, value in losses.items() if name.startswith(("speech", "latent"))]
    return sum(values) / len(values) if values else None


class ProgressLine:
    """A context manager; `update` shows the last logged step, `say` prints a line of its own."""

    def __init__(self, steps: int, start: int, quiet: bool = False):
        self.steps, self.start, self.quiet = steps, start, quiet
        self._live: Progress | None = None
        self._began: float | None = None  # the first step seen: compilation is not in the ETA
        self._first = start

    def __enter__(self) -> ProgressLine:
        console = Console()
        if console.is_terminal and not self.quiet:
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._live = Progress(*columns, console=console)
            self._live.start()
            self._task = self._live.add_task("compiling", total=self.steps, completed=self.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(
        self, step: int, losses: Mapping[str, float], tokens_per_second: float, log: bool
    ) -> None:
        """Shows a step; without a terminal, only those with `log` set."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, step
        text = self._describe(step, losses, tokens_per_second, now)
        if self._live:
            self._live.update(self._task, completed=step, description=text)
        elif log:
            self.say(f"step {step}/{self.steps}  {text}")

    def say(self, line: str) -> None:
        """Prints a line, above the live one if there is one."""
        if self.quiet:
            return
        if self._live:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True, file=sys.stdout)

    def _describe(self, step: int, losses: Mapping[str, float], rate: float, now: float) -> str:
        parts = []
        for name, value in (("text", losses.get("text")), ("speech", speech_loss(losses))):
            if value is not None:
                parts.append(f"{name} {value:.3f}")
        parts.append(f"{rate:,.0f} tokens/s")
        if step > self._first:
            seconds = (now - self._began) / (step - self._first) * (self.steps - step)
            parts.append(f"ETA {int(seconds) // 60}:{int(seconds) % 60:02d}")
        return "  ".join(parts)
