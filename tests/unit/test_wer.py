import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper_normalizer.english import EnglishTextNormalizer

from slm_jax.evaluation import wer

WORDS = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_corpus_rate_and_edit_counts_equal_jiwer(pairs):
    references = [" ".join(reference) for reference, _ in pairs]
    hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
    score = wer.word_error_rate(references, hypotheses)
    expected = jiwer.process_words(references, hypotheses)
    assert score.wer == pytest.approx(expected.wer)
    counts = [wer.count_errors(reference, hypothesis) for reference, hypothesis in pairs]
    edits = expected.substitutions + expected.deletions + expected.insertions
    assert sum(count.total for count in counts) == edits
    for count, (reference, hypothesis) in zip(counts, pairs, strict=True):
        assert count.insertions - count.deletions == len(hypothesis) - len(reference)
        assert count.words == len(reference)


def test_empty_hypothesis_is_all_deletions():
    assert wer.count_errors(["a", "b"], []) == wer.Errors(0, 2, 0, 2)
    assert wer.count_errors([], ["a"]) == wer.Errors(0, 0, 1, 0)
    assert wer.word_error_rate(["a b", "c"], ["", "c"]).wer == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Press 25, please.", "press twenty-five please"),
        ("Dial 1-2-3", "dial one two three"),
        ("in 1990", "in nineteen ninety"),
        ("105 calls", "one hundred and five calls"),
        ("1,250 calls", "one thousand two hundred fifty calls"),
        ("5 5 5", "555"),
        ("The 2nd agent’s OK", "the second agents okay"),
        ("50% [noise] of Mr. Smith", "um fifty percent of mister smith"),
        ("Don't", "don’t"),
        ("press #", "press pound"),
        ("hundred and counting", "hundred and counting"),
        ("twenty and thirty", "20 and 30"),
    ],
)
def test_spellings_that_sound_alike_agree(written, spoken):
    assert wer.normalize(written) == wer.normalize(spoken)


def test_different_words_stay_different():
    assert wer.normalize("twenty five") != wer.normalize("twenty nine")
    assert wer.normalize("can") != wer.normalize("can't")
    assert wer.normalize("naïve café") == ["naïve", "café"]


def test_close_to_the_published_normalizer_on_prompts():
    references = [
        "Please enter the 4 digit number, followed by the pound key.",
        "You've got 25 new messages! Press 1 to listen.",
        "Agent logged off; thank you.",
        "That's not a valid conference number. Please try again.",
    ]
    hypotheses = [
        "please enter the four digit number followed by the town key",
        "you've got twenty five new messages press one to listen",
        "agent logged of thank you",
        "that is not a valid conference number please try again",
    ]
    published = EnglishTextNormalizer()
    expected = jiwer.wer([published(t) for t in references], [published(t) for t in hypotheses])
    # Theirs expands contractions (that's = that is) and ours does not: two words of 36.
    assert abs(wer.word_error_rate(references, hypotheses).wer - expected) < 2.5 / 36


def test_interval_holds_the_rate_and_is_reproducible():
    references, hypotheses = ["a b c d"] * 10, ["a b c d"] * 8 + ["a b x d"] * 2
    score = wer.word_error_rate(references, hypotheses)
    assert score.low <= score.wer <= score.high
    assert score == wer.word_error_rate(references, hypotheses)
    assert score.n == 10 and score.words == 40


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="without words"):
        wer.word_error_rate(["..."], ["a"])
    with pytest.raises(ValueError):
        wer.word_error_rate(["a"], [])
