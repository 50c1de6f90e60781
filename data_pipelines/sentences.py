"""Sentences for a synthesiser to read, from text that comes through the package clients.

    python -m data_pipelines.sentences sentences.txt --count 1700

The Debian FAQ, the `fortunes` package and the transcripts of the prompts: ordinary English
sentences of 5 to 22 words without numerals or acronyms, and the prompts' own sentences of three
words or more. The order is fixed by a seed; every fourth sentence is a prompt's while they last.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines import corpora, fetch
from data_pipelines.text_corpus import read
from slm_jax.errors import run_main

TOPICS = (
    *("wisdom", "science", "work", "food", "people", "education", "humorists", "platitudes"),
    *("definitions", "miscellaneous", "sports", "medicine", "law", "art", "pets", "kids", "goedel"),
)
_PLAIN = re.compile(r"[A-Z][A-Za-z' ,;:\-?!.]+[.?!]")
_ACRONYM = re.compile(r"[A-Z]{2}")
_DIGIT = re.compile(r"\d")


def sentences(paragraphs: Iterable[str]) -> Iterator[str]:
    """The plain sentences of paragraphs of text."""
    for paragraph in paragraphs:
        for found in re.findall(r"[^.?!]+[.?!]", " ".join(paragraph.replace("--", ", ").split())):
            sentence, words = found.strip(), len(found.split())
            if not 5 <= words <= 22 or len(sentence) >= 8 * words:
                continue
            if _PLAIN.fullmatch(sentence) and not _ACRONYM.search(sentence):
                yield sentence


def collect(seed: int = 0) -> list[str]:
    """All sentences in reading order."""
    prose = [piece.text for piece in read(fetch.text_corpus(), max_words=10_000)]
    fortunes = fetch.locate("fortunes")
    for topic in TOPICS:
        text = (fortunes / topic).read_text(encoding="utf-8", errors="ignore")
        prose += re.split(r"\n%\n|\n\s*\n", text)
    plain = list(dict.fromkeys(sentences(prose)))
    random.Random(seed).shuffle(plain)
    spoken, _ = corpora.read("asterisk", fetch.prompts(), corpora.Defaults())
    heard = (utterance.text or "" for utterance in spoken)
    prompts = [t for t in dict.fromkeys(heard) if len(t.split()) >= 3 and not _DIGIT.search(t)]
    random.Random(seed + 1).shuffle(prompts)
    ordered = []
    while prompts or plain:
        ordered += [prompts.pop()] if prompts else []
        ordered += plain[:3]
        del plain[:3]
    return ordered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="text file to write, one sentence a line")
    parser.add_argument("--count", type=int, default=1700)
    args = parser.parse_args()
    args.out.write_text("\n".join(collect()[: args.count]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
