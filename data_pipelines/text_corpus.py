"""Text-only corpora: paragraphs of HTML, text and JSONL files, in pieces of bounded length."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from slm_jax.errors import UserError

SUFFIXES = (".html", ".htm", ".txt", ".jsonl")
MIN_WORDS = 5  # shorter paragraphs are headings, labels, entries of tables
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
SKIPPED = frozenset({"script", "style", "pre", "table", "head"})


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """A piece of text; `source` names file and paragraph."""

    id: str
    text: str
    source: str


def read(path: Path, max_words: int) -> list[TextPiece]:
    """All pieces of a file, or of the files below a folder, in a fixed order; repeats left out.

    Args:
      path: .html, .txt (paragraphs between blank lines), .jsonl (key "text"), or a folder.
      max_words: longer paragraphs are cut, at sentence ends where possible.

    Raises:
      UserError: nothing there, or no paragraph in it.
    """
    if not path.exists():
        raise UserError(f"the text corpus {path} does not exist", "check its path")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
    root = path.parent if path.is_file() else path
    seen: set[str] = set()
    found = []
    for file in files:
        name = str(file.relative_to(root))
        for number, paragraph in enumerate(_paragraphs(file)):
            for part, text in enumerate(pieces(" ".join(paragraph.split()), max_words)):
                if len(text.split()) >= MIN_WORDS and text not in seen:
                    seen.add(text)
                    found.append(TextPiece(f"{name}/{number}.{part}", text, f"{name}/{number}"))
    if not found:
        raise UserError(
            f"{path} holds no paragraph of {MIN_WORDS} words or more",
            f"give a file or a folder of files that end in {', '.join(SUFFIXES)}",
        )
    return found


def pieces(text: str, max_words: int) -> Iterator[str]:
    """Cuts a paragraph into runs of whole sentences of at most `max_words` words.

    A sentence longer than that is cut between words.
    """
    current: list[str] = []
    for sentence in SENTENCE_END.split(text):
        words = sentence.split()
        if current and len(current) + len(words) > max_words:
            yield " ".join(current)
            current = []
        current += words
        while len(current) > max_words:
            yield " ".join(current[:max_words])
            current = current[max_words:]
    if current:
        yield " ".join(current)


def _paragraphs(file: Path) -> Iterator[str]:
    text = file.read_text("utf-8", errors="replace")
    if file.suffix in (".html", ".htm"):
        parser = _Paragraphs()
        parser.feed(text)
        parser.close()
        yield from parser.paragraphs
    elif file.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if line.strip():
                    yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{file}:{number} is no JSON object with a text: {error!r}", "mend that line"
                ) from error
    else:
        yield from re.split(r"\n\s*\n", text)


class _Paragraphs(HTMLParser):
    """Collects the text of <p> elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._open: list[str] | None = None
        self._skip = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip += tag in SKIPPED
        if tag == "p":
            self._end()
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in SKIPPED and self._skip > 0
        if tag in ("p", "div", "li", "dd", "body"):
            self._end()

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._skip:
            self._open.append(data)

    def _end(self) -> None:
        if self._open is not None:
            self.paragraphs.append("".join(self._open))
            self._open = None
