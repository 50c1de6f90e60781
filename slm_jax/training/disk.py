"""A full disk, in whichever way a run meets it, as one error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from slm_jax.errors import UserError

CHECKPOINT = "a checkpoint"
FULL = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota exceeded", "File too large")


def check_space(directory: Path, state: Any) -> None:
    """Raises a UserError if the disk of a process has less room than it writes of `state`."""
    shards = (s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards)
    needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
    free = shutil.disk_usage(directory).free
    rooms = np.array([[needed, free]], np.float32) / 1e9
    if jax.process_count() > 1:  # else the others would begin to save, and wait
        rooms = multihost_utils.process_allgather(rooms, tiled=True)
    for process, (wanted, room) in enumerate(rooms):
        if wanted > room:
            whose = f"process {process}: " if len(rooms) > 1 else ""
            raise _full(directory, CHECKPOINT, f"{whose}{wanted:.2f} GB wanted, {room:.2f} free")


@contextlib.contextmanager
def errors(directory: Path, what: str = CHECKPOINT) -> Iterator[None]:
    """Turns the several exceptions of a full disk into one UserError, about `what` was written."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if full or any(text in str(cause) for text in FULL):
                raise _full(directory, what, first_line(cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def first_line(error: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _full(directory: Path, what: str, detail: str) -> UserError:
    return UserError(
        f"no room to save {what} in {directory} ({detail}); older checkpoints are intact",
        "Free space there and run the same command again: it continues from the newest checkpoint.",
    )
