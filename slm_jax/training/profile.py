"""A profiler trace of some steps, for TensorBoard's profile plugin, XProf or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from slm_jax.errors import UserError

FOLDER = "profile"


def parse_steps(text: str) -> range:
    """ "10:13" as the steps 10, 11 and 12; the first update is step 1.

    Raises:
      UserError: it is not written so, or names no step.
    """
    first, _, end = text.partition(":")
    if first.isdigit() and end.isdigit() and 1 <= int(first) < int(end):
        return range(int(first), int(end))
    raise UserError(
        f"--profile_steps={text} names no steps",
        "write the first step, a colon, and the step to stop before: --profile_steps=10:13",
    )


class Profile:
    """Traces `steps` into RUN/profile; a context manager around the loop.

    It waits for the device once, when the last of the steps has been given to it.
    """

    def __init__(self, run_dir: Path, steps: range):
        self.folder, self.steps = run_dir / FOLDER, steps
        self._tracing = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def within(self, start: int, end: int) -> bool:
        """Whether any of the updates after `start` up to `end` is traced."""
        return self.steps.start <= end and start + 1 < self.steps.stop

    def before(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Begins the trace when `step` is due; the step is to run within what this returns."""
        if step in self.steps and not self._tracing:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call: slows the steps it is to show
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, measured: Any) -> None:
        """Ends the trace behind its last step, whose results are `measured`."""
        if self._tracing and step + 1 not in self.steps:
            jax.block_until_ready(measured)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
