import pytest

from data_pipelines import sentences
from slm_jax.data.split import split_of
from slm_jax.errors import UserError

ORDERED = [
    f"This is sentence number {'abcdefghijklmnopqrstuvwxyz'[i % 26]} {i}." for i in range(200)
]


def test_plain_sentences_are_found_in_prose():
    prose = [
        "We went\nhome early -- all of us. NASA has 3 rockets. Too short. Is this one plain enough?"
    ]
    assert list(sentences.sentences(prose)) == [
        "We went home early , all of us.",
        "Is this one plain enough?",
    ]


def test_the_splits_part_the_sentences_and_keep_their_order():
    train = sentences.choose(ORDERED, "train", 0, 1000)
    held_out = sentences.choose(ORDERED, "held_out", 0, 1000)
    assert held_out and {split_of(text) for text in train} == {"train"}
    assert "train" not in {split_of(text) for text in held_out}
    assert sorted([*train, *held_out], key=ORDERED.index) == ORDERED
    assert train == sorted(train, key=ORDERED.index)


def test_skip_and_count_give_each_voice_its_own_sentences():
    everything = sentences.choose(ORDERED, "train", 0, 1000)
    first, second = (sentences.choose(ORDERED, "train", skip, 10) for skip in (0, 10))
    assert first + second == everything[:20]
    assert len(sentences.choose(ORDERED, "train", len(everything) - 1, 10)) == 1


@pytest.mark.parametrize(("skip", "count"), [(1000, 10), (-1, 10), (0, 0)])
def test_no_sentences_left_is_one_clear_error(skip, count):
    with pytest.raises(UserError, match="train sentences"):
        sentences.choose(ORDERED, "train", skip, count)
