"""The one train/validation/test split of the project."""

from __future__ import annotations

import hashlib
import unicodedata

SPLITS = ("train", "validation", "test")


def normalised(text: str) -> str:
    """Letters, marks and digits of `text`, case-folded, nothing else."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")


def split_of(text: str, *, validation_percent: float = 5, test_percent: float = 5) -> str:
    """The split that an utterance belongs to, by the hash of what is said in it.

    The same sentence is in the same split whoever says it, in whichever corpus, however it is
    punctuated, so that nothing ever trained (tokenizer, vocoder, LM) has heard a held-out text.
    """
    digest = hashlib.sha256(normalised(text).encode()).digest()
    percent = int.from_bytes(digest[:8], "big") / 2**64 * 100
    if percent < test_percent:
        return "test"
    return "validation" if percent < test_percent + validation_percent else "train"
