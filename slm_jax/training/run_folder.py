"""A run's directory, which one job at a time trains in."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from slm_jax.errors import UserError
from slm_jax.training.distributed import is_main

LOCK = ".lock"


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Makes the directory, and keeps other jobs out of it until the block ends.

    Two jobs would each clear away what the other is saving. The lock is the system's, on RUN/.lock,
    and ends with the process; storage that has no locks is trusted.

    Raises:
      UserError: the directory cannot be written to, or another job trains there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / LOCK, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(
            f"the run cannot be written to {run_dir} ({error.strerror})",
            "Set TrainJob.runs to a folder that can be written to.",
        ) from None
    with file:
        if is_main():
            _lock(file.fileno(), run_dir)
        yield


def _lock(file: int, run_dir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another job trains in {run_dir}",
            "Wait for its end, or train under another name (--gin.TrainJob.name=...).",
        ) from None
    except OSError:  # this storage has none
        pass
