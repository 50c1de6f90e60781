"""What can be asked of a corpus, and what is said where something cannot."""

import numpy as np
import pytest

from slm_jax.data.schema import Word
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.evaluation.tokenizers.tasks import make_tasks, spelled


def corpus(*utterances):
    """Of (voice, language, text, seconds); a word is half a second."""
    voices, languages, texts, seconds = zip(*utterances, strict=True)
    return Corpus(
        ids=[str(i) for i in range(len(utterances))],
        sets=[voice.partition("/")[0] for voice in voices],
        voices=list(voices),
        languages=list(languages),
        texts=[text if lang == "en" else None for text, lang in zip(texts, languages, strict=True)],
        words=[[Word(w, i / 2, (i + 1) / 2) for i, w in enumerate(text.split())] for text in texts],
        audios=[np.zeros(int(16_000 * s), np.float32) for s in seconds],
    )


def said(count, voice, text="Hello, there", language="en", seconds=1.0):
    return [(voice, language, text, seconds)] * count


GENDERS = {"ann": "female", "bob": "male", "cat": "female", "dan": "male"}


def test_text_is_spelled_without_what_nobody_says():
    assert spelled("Don’t dial 25, PLEASE - thanks!") == "don't dial twenty five please thanks"


def test_one_voice_and_one_language_cannot_be_told_apart():
    one = corpus(*said(3, "x/ann", "hi"))
    tasks = make_tasks(one, one, GENDERS)
    assert tasks["speaker"] == "fewer than two classes of voice in training speech"
    assert tasks["language"] == "fewer than two classes of language in training speech"
    assert tasks["gender"] == "fewer than two classes of known gender in training speech"
    assert tasks["keyword"].startswith("fewer than two words occur 10 times")
    assert tasks["emotion"] == "no corpus with emotions could be had"
    assert [example.answer for example in tasks["words"].train] == ["hi"] * 3


def test_held_out_speech_must_have_two_of_the_classes():
    train = corpus(*said(3, "x/ann"), *said(3, "y/bob"))
    tasks = make_tasks(train, corpus(*said(2, "x/ann"), *said(2, "z/cat")), GENDERS)
    assert tasks["speaker"] == "fewer than two classes of voice in held-out speech"
    assert tasks["gender"] == "fewer than two classes of known gender in held-out speech"


def test_gender_is_asked_of_new_voices_where_they_have_both():
    train = corpus(*said(3, "x/ann"), *said(3, "y/bob"), *said(1, "y/nobody knows"))
    heard = corpus(*said(2, "x/ann"), *said(2, "y/bob"), *said(2, "z/cat"))
    known = make_tasks(train, heard, GENDERS)["gender"]
    assert len(known.train) == 6 and len(known.held_out) == 6 and "has heard" in known.note
    new = corpus(*said(2, "x/ann"), *said(2, "z/cat"), *said(2, "z/dan"))
    unknown = make_tasks(train, new, GENDERS)["gender"]
    assert [example.row for example in unknown.held_out] == [2, 3, 4, 5]
    assert "not heard" in unknown.note and unknown.classes == ("female", "male")


def test_keywords_are_common_to_voices():
    """A word that is ann's alone would give her away: it comes last of three."""
    train = corpus(
        *said(20, "x/ann", "only hello there"),
        *said(11, "y/bob", "hello there"),
        *said(9, "y/bob", "rare"),
    )
    held_out = corpus(*said(2, "x/ann", "there is only hello"))
    task = make_tasks(train, held_out, GENDERS)["keyword"]
    assert task.classes == ("hello", "there", "only")
    [first] = [e for e in task.held_out if e.answer == "only" and e.row == 0]
    assert (first.start, first.end) == (1.0, 1.5)
    assert len([e for e in task.train if e.answer == "hello"]) == 31


def test_other_languages_are_told_apart_and_not_spelled():
    both = corpus(*said(2, "x/ann"), *said(2, "x/ann", "ahoj", "cs"), *said(1, "y/bob", seconds=13))
    tasks = make_tasks(both, both, GENDERS)
    assert tasks["language"].classes == ("cs", "en")
    assert [example.row for example in tasks["words"].train] == [0, 1]  # 13 s are too long
    foreign = corpus(*said(2, "x/ann", "ahoj", "cs"))
    assert make_tasks(foreign, foreign, GENDERS)["words"].startswith("no English transcripts")


@pytest.mark.parametrize("key", ["speaker", "language"])
def test_excerpts_are_the_beginning(key):
    both = corpus(*said(2, "x/ann", seconds=5), *said(2, "y/bob", "ahoj", "cs"))
    task = make_tasks(both, both, {})[key]
    assert {(example.start, example.end) for example in task.train} == {(0.0, 3.0)}
