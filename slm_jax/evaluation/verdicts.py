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

    Realignment is not kept.
    """
    book = Verdicts(path)
    return Judges(
        {name: book.transcribing(name, listen) for name, listen in judges.transcribe.items()},
        book.aligning(judges.align),
        book.embedding(judges.embed),
        book.scoring(judges.quality),
        judges.realign,
    )


class Verdicts:
    """What judges said, JSON lines [key, value] of a file, added one by one; a line cut short by a
    crash is left out. Its methods give judges that ask it first.

    A verdict is known by the judge's name, the samples of the clip and the words that it was told.
    Delete the file to have everything judged anew.
    """

    def __init__(self, path: Path):
        self._path, self._known = path, {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            key, value = json.loads(line)
            self._known[key] = value

    def transcribing(
        self, name: str, listen: Callable[[list[np.ndarray]], list[str]]
    ) -> Callable[[list[np.ndarray]], list[str]]:
        """A recogniser of that name."""

        def heard(clips: list[np.ndarray]) -> list[str]:
            keys = [_key(name, clip) for clip in clips]
            new = {k: clip for k, clip in zip(keys, clips, strict=True) if k not in self._known}
            if new:
                for key, text in zip(new, listen(list(new.values())), strict=True):
                    self._add(key, text)
            return [self._known[key] for key in keys]

        return heard

    def aligning(
        self, align: Callable[[np.ndarray, Sequence[str]], list[Span]]
    ) -> Callable[[np.ndarray, Sequence[str]], list[Span]]:
        """A forced aligner."""

        def spans(clip: np.ndarray, words: Sequence[str]) -> list[Span]:
            found = self.ask(_key("align", clip, words), lambda: align(clip, words))
            return [None if span is None else (span[0], span[1]) for span in found]

        return spans

    def embedding(
        self, embed: Callable[[np.ndarray], np.ndarray]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """A speaker encoder."""
        return lambda clip: np.array(self.ask(_key("voice", clip), lambda: embed(clip).tolist()))

    def scoring(self, quality: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        """A judge of quality."""
        return lambda clip: self.ask(_key("quality", clip), lambda: quality(clip))

    def ask(self, key: str, judge: Callable[[], Any]) -> Any:
        """What stands under the key, or what the judge now says; a value of JSON."""
        if key not in self._known:
            self._add(key, judge())
        return self._known[key]

    def _add(self, key: str, value: Any) -> None:
        self._known[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")


def _key(judge: str, clip: np.ndarray, words: Sequence[str] = ()) -> str:
    digest = hashlib.sha256(json.dumps([judge, list(words)]).encode())
    digest.update(np.ascontiguousarray(clip, np.float32))
    return digest.hexdigest()[:32]
