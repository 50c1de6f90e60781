"""False twins: an utterance whose second half is spoken by another one, while its text stays.

A model that has learned how speech goes on, or how a text sounds, finds the true one likelier. The
share of pairs in which it does is a figure that systems of different tokenizers have in common
(the "pair accuracy" of sWUGGY and its kin, here over matched true and false utterances).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from slm_jax.data.schema import WORDS, Record, StreamItem
from slm_jax.streams import WORD, StreamSpec


def twins(
    records: Sequence[Record], specs: Mapping[str, StreamSpec], each: int, seed: int
) -> list[tuple[int, Record]]:
    """(place of the true one, false one), at most `each` of every record.

    Args:
      records: with "words" and speech streams.
      specs: of their families.
      each: how many.
      seed: of the choice of donors.
    """
    made = []
    for place, record in enumerate(records):
        word = middle(record)
        donors = [
            n
            for n, other in enumerate(records)
            if n != place and word is not None and _gives(other, record, specs)
        ]
        order = np.random.default_rng((seed, place)).permutation(len(donors))[:each]
        made += [(place, twin(record, records[donors[n]], specs, word)) for n in order]
    return made


def middle(record: Record) -> int | None:
    """The word, not the first, that begins nearest to the middle; None of a single word."""
    spoken = record[WORDS]
    if len(spoken.words) < 2:
        return None
    starts = np.array([word.start for word in spoken.words[1:]])
    return 1 + int(np.abs(starts - spoken.duration / 2).argmin())


def twin(record: Record, donor: Record, specs: Mapping[str, StreamSpec], word: int) -> Record:
    """`record` whose speech streams are the donor's from a word's start on.

    Args:
      record, donor: the donor's streams are as long, at least.
      specs: of the families.
      word: of `record`.
    """
    start = record[WORDS].words[word].start
    changed = {}
    for family, item in record.items():
        if not _is_speech(family, item):
            continue
        clock = specs[family].clock
        cut = word if clock == WORD else round(start * float(clock))
        values = np.concatenate([item.values[:cut], donor[family].values[cut : len(item.values)]])
        changed[family] = dataclasses.replace(item, values=values)
    return {**record, **changed}


def _gives(donor: Record, record: Record, specs: Mapping[str, StreamSpec]) -> bool:
    return all(
        len(donor[family].values) >= len(item.values)
        for family, item in record.items()
        if _is_speech(family, item)
    )


def _is_speech(family: str, item: object) -> bool:
    return isinstance(item, StreamItem) and not family.startswith("text")
