"""What judges said of clips before: a measurement that was stopped goes on, and systems that do not
change from one tokenizer to the next, as the originals and Opus, are judged once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.evaluation.scores import Judges, Span


def remembering(judges: Judges, path: Path) -> Judges:
    """The same judges, which ask the file at `path` first and add to it what they say.

    A verdict is known by the judge's name, the samples of the clip and the words that it was told.
    Realignment is not kept. Delete the file to have everything judged anew.
    """
    book = _Book(path)

    def transcribe(name: str, listen: Callable[[list[np.ndarray]], list[str]]) -> Any:
        def heard(clips: list[np.ndarray]) -> list[str]:
            keys = [_key(name, clip) for clip in clips]
            new = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in book}
            if new:
                for key, text in zip(new, listen(list(new.values())), strict=True):
                    book[key] = text
            return [book[key] for key in keys]

        return heard

    def align(clip: np.ndarray, words: Sequence[str]) -> list[Span]:
        spans = book.ask(_key("align", clip, words), lambda: judges.align(clip, words))
        return [None if span is None else (span[0], span[1]) for span in spans]

    def embed(clip: np.ndarray) -> np.ndarray:
        return np.array(book.ask(_key("voice", clip), lambda: judges.embed(clip).tolist()))

    return Judges(
        {name: transcribe(name, listen) for name, listen in judges.transcribe.items()},
        align,
        embed,
        lambda clip: book.ask(_key("quality", clip), lambda: judges.quality(clip)),
        judges.realign,
    )


class _Book:
    """JSON lines [key, value], added to one by one; a line cut short by a crash is left out."""

    def __init__(self, path: Path):
        self._path, self._known = path, {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            key, value = json.loads(line)
            self._known[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._known[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")

    def ask(self, key: str, judge: Callable[[], Any]) -> Any:
        if key not in self:
            self[key] = judge()
        return self[key]


def _key(judge: str, clip: np.ndarray, words: Sequence[str] = ()) -> str:
    digest = hashlib.sha256(json.dumps([judge, list(words)]).encode())
    digest.update(np.ascontiguousarray(clip, np.float32))
    return digest.hexdigest()[:32]
