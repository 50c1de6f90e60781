"""Sentences for a synthesiser to read, from text that comes through the package clients.

    python -m data_pipelines.sentences sentences.txt --count 1700
    python -m data_pipelines.sentences others.txt --skip 1700 --count 450     # for another voice
    python -m data_pipelines.sentences unheard.txt --split held_out --count 32

The Debian FAQ, the `fortunes` package and the transcripts of the prompts: ordinary English
sentences of 5 to 22 words without numerals or acronyms, and the prompts' own sentences of three
words or more. The order is fixed by a seed; every fourth sentence is a prompt's while they last.
Sentences of the train split and held-out ones (validation and test) are lists of their own.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipelines import corpora, fetch
from data_pipelines.text_corpus import read
from slm_jax.data.split import split_of
from slm_jax.errors import UserError, run_main

SPLITS = ("train", "held_out")
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


def choose(ordered: Iterable[str], split: str, skip: int, count: int) -> list[str]:
    """The sentences of one split, in their order, from the skip-th on.

    Args:
      ordered: all sentences.
      split: "train", or "held_out" for validation and test together.
      skip: how many to leave out, as those that another voice reads.
      count: how many at most.

    Raises:
      UserError: none are left, or a number is negative.
    """
    train = split == "train"
    found = [sentence for sentence in ordered if (split_of(sentence) == "train") == train]
    if not 0 <= skip < len(found) or count < 1:
        raise UserError(
            f"of the {len(found)} {split} sentences there are no {count} after the first {skip}",
            f"give a --skip from 0 to {len(found) - 1} and a --count of 1 or more",
        )
    return found[skip : skip + count]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="text file to write, one sentence a line")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--skip", type=int, default=0, help="sentences to leave out first")
    parser.add_argument("--count", type=int, default=1700, help="sentences at most")
    args = parser.parse_args()
    chosen = choose(collect(), args.split, args.skip, args.count)
    args.out.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(chosen)} sentences", file=sys.stderr)


if __name__ == "__main__":
    run_main(_main)
