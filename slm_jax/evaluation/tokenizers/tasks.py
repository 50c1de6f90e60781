"""What probes are asked, as far as the speech at hand has answers: DASB's tasks on other data."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.tokenizers.taste_text import spell_numerals

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
_LONGEST = 8.0  # seconds; probes neither learn from nor are asked about longer utterances
_EXCERPT = 3.0  # seconds from the start that say who speaks, or in which language
_KEYWORDS, _SHORTEST = 10, 4  # words to be told apart, and letters that each has at least
_EXAMPLES = 60  # of each keyword to learn from, at most
_SEEN, _ASKED = 10, 2  # examples of a keyword that there must be


class Example(NamedTuple):
    """A stretch of an utterance and the answer.

    Attributes:
      row: of the corpus.
      start, end: seconds.
      answer: name of a class, or what is said in `LETTERS`.
    """

    row: int
    start: float
    end: float
    answer: str


class Task(NamedTuple):
    """Examples to learn from and to be asked about.

    Attributes:
      classes: that answers are one of; () where answers are spelled.
      note: what else a reader must know.
    """

    train: list[Example]
    held_out: list[Example]
    classes: tuple[str, ...]
    note: str = ""


Missing: TypeAlias = str  # why a task cannot be had


def make_tasks(
    train: Corpus, held_out: Corpus, genders: Mapping[str, str]
) -> dict[str, Task | Missing]:
    """All tasks by name, or the reason why one is not available.

    Args:
      train: to learn from.
      held_out: to be asked about.
      genders: of speakers, by name without the dataset; who is not there is left out.
    """
    return {
        "words": _words(train, held_out),
        "keyword": _keywords(train, held_out),
        "speaker": _speakers(train, held_out),
        "gender": _genders(train, held_out, genders),
        "language": _languages(train, held_out),
        "emotion": "no corpus with emotions could be had",
    }


def spelled(text: str) -> str:
    """English as the word probe writes it: lower case, numerals read out, nothing but `LETTERS`."""
    words = spell_numerals(text.casefold().replace("’", "'"))
    kept = "".join(c if c in LETTERS else " " for c in words)
    return " ".join(kept.split())


def _words(train: Corpus, held_out: Corpus) -> Task | Missing:
    both = [
        [
            Example(row, 0.0, math.inf, text)
            for row in _short(corpus)
            if corpus.texts[row] and (text := spelled(corpus.texts[row]))
        ]
        for corpus in (train, held_out)
    ]
    if not all(both):
        return "no English transcripts in both splits"
    return Task(*both, ())


def _keywords(train: Corpus, held_out: Corpus) -> Task | Missing:
    """The words that two voices say most often, so that no voice gives them away."""
    said, asked = _occurrences(train), _occurrences(held_out)

    def commonness(word: str) -> tuple[int, int]:
        """How often the voice that says it second most often does, and how often all do."""
        counts = Counter(train.voices[example.row] for example in said[word])
        return [*sorted(counts.values(), reverse=True), 0][1], len(said[word])

    enough = [w for w in said if len(said[w]) >= _SEEN and len(asked.get(w, ())) >= _ASKED]
    chosen = sorted(sorted(enough), key=commonness, reverse=True)[:_KEYWORDS]
    if len(chosen) < 2:
        return f"fewer than two words occur {_SEEN} times in training and {_ASKED} in held-out"
    return Task(
        [example for word in chosen for example in said[word][:_EXAMPLES]],
        [example for word in chosen for example in asked[word]],
        tuple(chosen),
    )


def _occurrences(corpus: Corpus) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    for row in _short(corpus):
        for word in corpus.words[row] if corpus.texts[row] else ():
            letters = spelled(word.text)
            if len(letters) >= _SHORTEST and " " not in letters and word.end > word.start:
                found[letters].append(Example(row, word.start, word.end, letters))
    return found


def _speakers(train: Corpus, held_out: Corpus) -> Task | Missing:
    return _classify(_excerpts(train, train.voices), _excerpts(held_out, held_out.voices), "voice")


def _genders(train: Corpus, held_out: Corpus, genders: Mapping[str, str]) -> Task | Missing:
    """Of voices that were not trained on where these have both, else of all: a probe that knows
    the voices need not know what they have in common."""

    def labelled(corpus: Corpus) -> list[Example]:
        answers = [genders.get(voice.partition("/")[2], "") for voice in corpus.voices]
        return _excerpts(corpus, answers)

    asked = labelled(held_out)
    new = [example for example in asked if held_out.voices[example.row] not in set(train.voices)]
    unseen = len({example.answer for example in new}) > 1
    note = "voices that the probe has not heard" if unseen else "voices that the probe has heard"
    return _classify(labelled(train), new if unseen else asked, "known gender", note)


def _languages(train: Corpus, held_out: Corpus) -> Task | Missing:
    return _classify(
        _excerpts(train, train.languages), _excerpts(held_out, held_out.languages), "language"
    )


def _classify(
    train: list[Example], held_out: list[Example], what: str, note: str = ""
) -> Task | Missing:
    classes = {example.answer for example in train}
    asked = [example for example in held_out if example.answer in classes]
    for part, examples in (("training", train), ("held-out", asked)):
        if len({example.answer for example in examples}) < 2:
            return f"fewer than two classes of {what} in {part} speech"
    return Task(train, asked, tuple(sorted(classes)), note)


def _excerpts(corpus: Corpus, answers: Sequence[str]) -> list[Example]:
    """The beginning of each utterance that has an answer."""
    return [Example(row, 0.0, _EXCERPT, answers[row]) for row in _short(corpus) if answers[row]]


def _short(corpus: Corpus) -> list[int]:
    return [i for i, audio in enumerate(corpus.audios) if len(audio) <= _LONGEST * AUDIO_RATE]
