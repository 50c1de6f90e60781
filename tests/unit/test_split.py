import subprocess
import sys

import pytest

from slm_jax.data.split import normalised, split_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, world!", "hello world"),
        ("E-mail sent.", "email  sent"),
        ("Straße", "STRASSE"),
        ("ﬁve", "five"),
    ],
)
def test_the_same_words_are_the_same_text(one, other):
    assert normalised(one) == normalised(other)
    assert split_of(one) == split_of(other)


def test_different_words_stay_different():
    assert normalised("कि") != normalised("क")
    assert normalised("vier") != normalised("fier")


def test_shares_are_those_asked_for():
    texts = [f"sentence number {i}" for i in range(20_000)]
    splits = [split_of(t, validation_percent=10, test_percent=2) for t in texts]
    assert splits.count("test") / len(texts) == pytest.approx(0.02, abs=0.005)
    assert splits.count("validation") / len(texts) == pytest.approx(0.10, abs=0.01)
    assert split_of("anything", validation_percent=0, test_percent=0) == "train"


def test_growing_the_held_out_share_keeps_test_out_of_train():
    for i in range(2_000):
        if split_of(str(i), validation_percent=5, test_percent=5) == "test":
            assert split_of(str(i), validation_percent=20, test_percent=5) == "test"


def test_known_answers_are_the_same_in_every_process():
    texts = [f"t{i}" for i in range(40)]
    code = f"from slm_jax.data.split import split_of; print([split_of(t) for t in {texts}])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == str([split_of(t) for t in texts])
    assert [i for i, t in enumerate(texts) if split_of(t) != "train"] == [25, 28]
