"""Byte-pair encoding over units: frequent sequences of units become one id.

As in Shen et al. 2024, "Acoustic BPE for speech generation with discrete tokens" (arXiv
2310.14580): each unit is written as one character, and the pairs are those of text (Sennrich et
al. 2016, arXiv 1508.07909), by the `tokenizers` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, trainers

from slm_jax.errors import UserError
from slm_jax.streams import fingerprint

# Unit u is the character FIRST + u: Unicode's plane 15 is for private use, and no step of the
# library treats its characters as white space, letters or marks.
FIRST = 0xF0000
MOST_UNITS = 0xFFFE  # private characters in the plane
_SEEN = 2  # a pair must be seen so often to become an id


class UnitBpe:
    """Units to ids and back, exactly.

    Ids below `units` are the units themselves, so any sequence of units has an encoding.

    Attributes:
      units: how many different units there are.
      fingerprint: equal for encoders that give equal ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Takes a BPE over private characters; `train` and `load` make one.

        Raises:
          ValueError: a tokenizer of another kind.
        """
        pieces = sorted((index, piece) for piece, index in tokenizer.get_vocab().items())
        if [index for index, _ in pieces] != list(range(len(pieces))):
            raise ValueError("ids have gaps")
        self._tokenizer = tokenizer
        # Each id as int32 units.
        self._spelled = [_units(piece) for _, piece in pieces]
        self.units = sum(len(spelled) == 1 for spelled in self._spelled)
        alone = [spelled.tolist() for spelled in self._spelled[: self.units]]
        if alone != [[unit] for unit in range(self.units)]:
            raise ValueError("its first ids are not the units")
        model = json.loads(tokenizer.to_str())["model"]
        self.fingerprint = fingerprint("unit-bpe-1", self.units, model["merges"])

    @property
    def vocab_size(self) -> int:
        return len(self._spelled)

    @classmethod
    def train(cls, sequences: Iterable[np.ndarray], units: int, vocab_size: int) -> UnitBpe:
        """Learns which pairs to merge.

        Args:
          sequences: int [n] each, in [0, units); deduplicated or not. Ids never join two of them.
          units: how many different units there are, seen here or not.
          vocab_size: most ids to make; fewer if no pair is left that occurs twice.

        Raises:
          ValueError: more units than there are characters, or than ids; or units out of range.
        """
        if not 1 <= units <= min(vocab_size, MOST_UNITS):
            raise ValueError(
                f"{units} units: wanted are 1 to {MOST_UNITS}, and at most the {vocab_size} ids"
            )
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=_SEEN,
            initial_alphabet=[chr(FIRST + unit) for unit in range(units)],
            show_progress=False,
        )
        tokenizer.train_from_iterator((_written(units, s) for s in sequences), trainer)
        return cls(tokenizer)

    def encode(self, units: np.ndarray) -> np.ndarray:
        """int [n], each in [0, self.units) -> int32 [m] ids, m <= n.

        Raises:
          ValueError: a unit out of range.
        """
        encoding = self._tokenizer.encode(_written(self.units, units), add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """int [m], each in [0, vocab_size) -> int32 [n] units.

        Raises:
          ValueError: an id out of range.
        """
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"ids {ids.min()} to {ids.max()} of {self.vocab_size}")
        return np.concatenate([np.zeros(0, np.int32), *(self._spelled[index] for index in ids)])

    def save(self, path: Path | str) -> None:
        """Writes the library's tokenizer.json."""
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: Path | str) -> UnitBpe:
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, or another tokenizer.
        """
        remedy = "give a file that UnitBpe.save wrote, or train again"
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist", remedy)
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{path} is no BPE over units: {error}", remedy) from None


def _written(count: int, units: np.ndarray) -> str:
    """int [n] -> n private characters."""
    units = np.asarray(units, np.int64)
    if units.size and not 0 <= units.min() <= units.max() < count:
        raise ValueError(f"units {units.min()} to {units.max()} of {count}")
    return "".join(map(chr, (units + FIRST).tolist()))


def _units(piece: str) -> np.ndarray:
    """n private characters -> int32 [n]."""
    units = np.array([ord(character) - FIRST for character in piece], np.int32)
    if not len(units) or units.min() < 0 or units.max() >= MOST_UNITS:
        raise ValueError(f"{piece!r} is not made of units")
    return units
