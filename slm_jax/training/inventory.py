"""The sizes of a checkpoint's files, by which one that has lost bytes is told from a whole one.

Orbax finds a truncated file only when it reads it, on the one host that needs it. The list is
written when the checkpoint is complete, and looked at before any of it is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "_FILES.json"
ASIDE = "damaged_checkpoints"


def write(folder: Path) -> None:
    """Lists what is in `folder`: {relative path: bytes}."""
    temporary = folder / f"{FILE}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_sizes(folder), file, indent=0)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / FILE)


def damage(folder: Path) -> str | None:
    """What `folder` lacks of its list, in words; None if nothing, or if it has no list.

    A checkpoint has none if its process was killed just then, or from an older program.
    """
    path = folder / FILE
    if not path.exists():
        return None
    found = _sizes(folder)
    try:
        listed = json.loads(path.read_bytes())
    except ValueError:
        return f"{FILE} is cut short"
    for name, size in listed.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != size:
            return f"{name} has {found[name]} of {size} bytes"
    return None


def set_aside(folders: list[Path]) -> None:
    """Moves those damaged that are newer than the newest whole one out of the way, and says so.

    Args:
      folders: of the checkpoints of a run, the newest last. Where none is whole, all stay.
    """
    damaged = {}
    for folder in reversed(folders):
        if (lost := damage(folder)) is None:
            break
        damaged[folder] = lost
    else:
        return
    for old, lost in damaged.items():
        number, new = 1, old.parents[1] / ASIDE / old.name
        while new.exists():
            number, new = number + 1, new.with_name(f"{old.name}-{number + 1}")
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
        print(f"{old} is damaged: {lost}. Moved to {new}; {folder} is used instead.", flush=True)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(FILE)
    }
