import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.tokenizers.taste_text import (
    BEGIN,
    END,
    PHONES,
    identify_pronunciations,
    pronounce,
    read_dictionary,
    read_text,
    spell_numerals,
)
from slm_jax.training.taste_job import withhold

KNOWN = {
    "cat": ("K", "AE", "T"),
    "bus": ("B", "AH", "S"),
    "dog": ("D", "AO", "G"),
    "o'clock": ("AH", "K", "L", "AA", "K"),
    "seven": ("S", "EH", "V", "AH", "N"),
    "f": ("EH", "F"),
    "t": ("T", "IY"),
    "p": ("P", "IY"),
}


def shown(text):
    """Phones by name, bytes as letters."""
    return " ".join(PHONES[i - 256] if i >= 256 else chr(i) for i in text.ids[1:-1])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Cat,", "K AE T ,"),
        ("cat-dog", "K AE T - D AO G"),
        ("hat", "h a t"),
        ("'cat'", "K AE T"),
        ("cat's", "K AE T S"),
        ("dog's", "D AO G Z"),
        ("bus's", "B AH S IH Z"),
        ("hat's", "h a t ' s"),
        ("o'clock", "AH K L AA K"),
        ("FTP", "EH F T IY P IY"),
        ("bcd", "b c d"),
        ("7", "S EH V AH N"),
    ],
)
def test_known_words_are_phones_and_others_letters(written, read):
    assert shown(read_text([written], KNOWN)) == read


def test_symbols_know_their_word():
    text = read_text(["Héllo,", "cat"], KNOWN)
    assert bytes(text.ids[1:9].astype(np.uint8)).decode() == "héllo, "
    assert (text.ids[0], text.ids[-1]) == (BEGIN, END)
    np.testing.assert_array_equal(text.words, [0] * 9 + [1] * 4)


@pytest.mark.parametrize(
    ("written", "read"),
    [("1,", "one,"), ("20", "twenty"), ("$47", "$forty seven"), ("162", "one six two"),
     ("05", "zero five"), ("19th", "nineteenth"), ("word", "word")],
)  # fmt: skip
def test_numerals_are_read_aloud(written, read):
    assert spell_numerals(written) == read
    assert bytes(read_text([written], {}).ids[1:-1].astype(np.uint8)).decode() == read


def test_a_dictionary_is_read_without_stress_variants_and_symbols(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("cab K AE1 B\ncab(2) K AH0 B\ndon't D OW1 N T\n.dot D AA1 T\nempty\n")
    assert read_dictionary(path) == {"cab": ("K", "AE", "B"), "don't": ("D", "OW", "N", "T")}
    assert read_dictionary(tmp_path) == read_dictionary(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no pronunciations"):
        read_dictionary(path)
    path.write_text("cab k a b\n")
    with pytest.raises(UserError, match="is no phone"):
        read_dictionary(path)
    with pytest.raises(UserError, match="is no pronouncing dictionary"):
        read_dictionary(tmp_path / "elsewhere")


def test_a_dictionary_is_known_by_what_it_says():
    again = {word: KNOWN[word] for word in sorted(KNOWN, reverse=True)}
    assert identify_pronunciations(KNOWN) == identify_pronunciations(again)
    assert identify_pronunciations(KNOWN) != identify_pronunciations(again | {"cat": ("K",)})
    assert pronounce("", KNOWN) == ()


def test_a_fifth_of_the_words_is_withheld():
    whole = {str(i): ("K",) for i in range(1000)}
    kept = withhold(whole, 0)
    assert 750 < len(kept) < 850 and set(kept) < set(whole)
    assert kept == withhold(dict(reversed(whole.items())), 0) != withhold(whole, 1)
