"""What a word is, per language. Everything that cuts text into words goes through here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol

# Written without spaces between words; the languages that Whisper splits by character as well.
CHARACTER_LANGUAGES = ("zh", "ja", "yue", "th", "lo", "my", "km")


class Segmenter(Protocol):
    """Cuts text into words, and puts it together again.

    For any text, `split(join(split(text))) == split(text)`.

    Attributes:
      separator: what stands between two words in writing.
    """

    separator: str

    def split(self, text: str) -> list[str]:
        """The words, punctuation attached, no white space inside or around."""
        ...

    def join(self, words: Sequence[str]) -> str:
        """The text of these words."""
        ...


class WhitespaceSegmenter:
    """Words are what white space separates."""

    separator = " "

    def split(self, text: str) -> list[str]:
        return text.split()

    def join(self, words: Sequence[str]) -> str:
        return " ".join(words)


class CharacterSegmenter:
    """Words are characters, with their combining marks and the punctuation that belongs to them.

    Runs of Latin letters and digits stay whole ("iPhone 15" is two words). White space is kept by
    `join` where two words would run together without it; elsewhere it has no meaning.
    """

    separator = ""

    def split(self, text: str) -> list[str]:
        words: list[str] = []
        opening, after_space = "", True  # `opening` waits for the character it belongs to
        for character in text:
            if character.isspace():
                after_space = True
                continue
            category = unicodedata.category(character)
            run = words and not opening and not after_space and _runs_on(words[-1], character)
            if category in ("Ps", "Pi"):
                opening += character
            elif words and not opening and (_attaches(character, category) or run):
                words[-1] += character
            else:
                words.append(opening + character)
                opening = ""
            after_space = False
        if opening:
            words.append(opening)
        return words

    def join(self, words: Sequence[str]) -> str:
        text = ""
        for word in words:
            text += " " + word if text and _runs_on(text, word[0]) else word
        return text


def segmenter_for(language: str) -> Segmenter:
    """The segmenter of a language given as ISO 639 or BCP 47 code, e.g. "en" or "zh-TW"."""
    code = language.replace("_", "-").split("-")[0].lower()
    return CharacterSegmenter() if code in CHARACTER_LANGUAGES else WhitespaceSegmenter()


def _attaches(character: str, category: str) -> bool:
    """Marks, closing punctuation, and the Japanese and Thai signs that lengthen or repeat."""
    return category[0] in "MP" or character in "ーｰゝゞ々ๆ"


def _runs_on(word: str, character: str) -> bool:
    return _is_alphabetic(character) and (_is_alphabetic(word[-1]) or word[-1] in "'’.-")


def _is_alphabetic(character: str) -> bool:
    """Letters and digits of scripts that do write spaces between words."""
    if not character.isalnum():
        return False
    name = unicodedata.name(character, "")
    return name.startswith(("LATIN ", "DIGIT ", "GREEK ", "CYRILLIC ", "FULLWIDTH "))
