"""The text as TASTE's decoder reads it: phones of words that a dictionary knows, letters of others.

A few hours of speech hold a few thousand words, too few to learn from them how English is spelled;
a pronouncing dictionary holds 126,000. What it does not know is spelled out, and the decoder learns
to read that as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_jax.errors import UserError
from slm_jax.streams import fingerprint

BEGIN, END = 2, 3  # control bytes that never occur in text: the silence around an utterance
# ARPAbet, as the CMU Pronouncing Dictionary has it.
PHONES = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"),
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH"),
    *("T", "TH", "V", "W", "Y", "Z", "ZH"),
)
SYMBOLS = 256 + len(PHONES)  # bytes, then phones

Pronunciations = Mapping[str, tuple[str, ...]]

_PHONE = {phone: 256 + i for i, phone in enumerate(PHONES)}
_SIBILANT = {"S", "Z", "SH", "ZH", "CH", "JH"}
_VOICELESS = {"P", "T", "K", "F", "TH"}
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_RUN = re.compile(r"[a-z']+|[^a-z']+")


class Symbols(NamedTuple):
    """A text of N symbols.

    Attributes:
      ids: int32 [N], UTF-8 bytes and phones (256 + their number in `PHONES`); BEGIN first, END
        last, words separated by one space.
      words: int32 [N], the word of each; a space, BEGIN and END belong to the word before (BEGIN
        to word 0).
    """

    ids: np.ndarray
    words: np.ndarray


def read_text(words: Sequence[str], pronunciations: Pronunciations) -> Symbols:
    """Symbols of case-folded words, numerals spelled out.

    Args:
      words: as they are written, punctuation and all; punctuation stays.
      pronunciations: ARPAbet phones of words; empty to spell all of them.
    """
    ids, index = [BEGIN], [0]
    for w, word in enumerate(words):
        said = _read_word(spell_numerals(word.casefold()), pronunciations)
        said += [ord(" ")] if w + 1 < len(words) else []
        ids += said
        index += [w] * len(said)
    ids.append(END)
    index.append(max(0, len(words) - 1))
    return Symbols(np.array(ids, np.int32), np.array(index, np.int32))


def _read_word(word: str, pronunciations: Pronunciations) -> list[int]:
    ids: list[int] = []
    for run in _RUN.findall(word):
        bare = run.strip("'")
        phones = pronounce(run, pronunciations) or pronounce(bare, pronunciations)
        ids += [_PHONE[phone] for phone in phones] if phones else run.encode()
    return ids


def pronounce(word: str, pronunciations: Pronunciations) -> tuple[str, ...]:
    """Phones of a word in small letters; of a possessive by its base, and of letters without a
    vowel among them by their names. Empty if unknown."""
    if word in pronunciations:
        return pronunciations[word]
    base = pronunciations.get(word.removesuffix("'s"), ()) if word.endswith("'s") else ()
    if base:
        if base[-1] in _SIBILANT:
            return (*base, "IH", "Z")
        return (*base, "S" if base[-1] in _VOICELESS else "Z")
    if word and not set(word) & set("aeiouy'"):
        names = [pronunciations.get(letter, ()) for letter in word]
        return tuple(phone for name in names for phone in name) if all(names) else ()
    return ()


def spell_numerals(word: str) -> str:
    """English numerals as they are read: up to 99 as a number, longer ones digit by digit."""

    def read(match: re.Match) -> str:
        digits = match[0]
        if len(digits) > 2 or (len(digits) == 2 and digits[0] == "0"):
            return " ".join(_ONES[int(d)] for d in digits)
        if int(digits) < len(_ONES):
            return _ONES[int(digits)]
        tens, ones = _TENS[int(digits[0]) - 2], int(digits[1])
        return f"{tens} {_ONES[ones]}" if ones else tens

    return re.sub(r"[0-9]+", read, word)


def read_dictionary(path: Path | str) -> dict[str, tuple[str, ...]]:
    """CMUdict's format: `word P H O N E S` a line; other readings of a word, `word(2)`, are left
    out, and so are stress digits.

    Args:
      path: the file, or a folder with one `.dict` file in it.

    Raises:
      UserError: there is no such file, it has no such lines, or a phone is not in ARPAbet.
    """
    text = _dictionary_file(Path(path)).read_text(encoding="utf-8")
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        word, *phones = line.split() or [""]
        if phones and word.replace("'", "").isalpha():
            found[word.casefold()] = tuple(phone.rstrip("012") for phone in phones)
    if not found:
        raise UserError(f"{path} holds no pronunciations", "give one in CMUdict's format")
    if unknown := {phone for phones in found.values() for phone in phones} - set(PHONES):
        raise UserError(
            f"{path}: {', '.join(sorted(unknown)[:5])} is no phone of ARPAbet",
            "give a dictionary in CMUdict's format",
        )
    return found


def identify_pronunciations(pronunciations: Pronunciations) -> str:
    """A fingerprint of what words are said like."""
    lines = (f"{word} {' '.join(pronunciations[word])}" for word in sorted(pronunciations))
    return fingerprint("\n".join(lines).encode())


def _dictionary_file(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.dict"))
    if len(files) != 1:
        raise UserError(
            f"{path} is no pronouncing dictionary", "give a file, or a folder with one .dict file"
        )
    return files[0]
