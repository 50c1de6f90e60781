"""Inputs that were left out, each with its reason; counted and reported, never dropped silently."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

FILE = "quarantine.jsonl"

# The reasons, beside those of slm_jax.audio.errors.AudioError; `detail` says more.
NOT_SPEECH = "not speech"
NO_AUDIO = "audio missing"
NO_TRANSCRIPT = "no transcript"
BAD_ENTRY = "bad manifest line"
DUPLICATE = "duplicate id"
TRUNCATED = "truncated"
SILENT = "silent"
TOO_SHORT = "too short"
TOO_LONG = "too long"
CRASHED = "crashed the decoder twice"
NO_WORDS = "no words"
MISALIGNED = "transcript does not fit"


@dataclasses.dataclass(frozen=True)
class Rejected:
    """One input left out of a dataset.

    Attributes:
      id: utterance id (or the place in a listing).
      path: the file, as the corpus names it.
      reason: one of the constants above, or the reason of an AudioError.
      detail: figures or the decoder's message.
    """

    id: str
    path: str
    reason: str
    detail: str = ""


def write(path: Path, rejected: Iterable[Rejected]) -> None:
    """Writes one JSON object a line, atomically; an empty list gives an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in rejected]
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path) -> list[Rejected]:
    """The entries of a quarantine file, [] if there is none."""
    if not path.exists():
        return []
    return [Rejected(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def summary(rejected: Iterable[Rejected]) -> dict[str, int]:
    """reason -> count, most frequent first."""
    return dict(collections.Counter(item.reason for item in rejected).most_common())
