"""Units and phones: what the coders of the suite know of phones that an aligner has placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from slm_jax.evaluation.tokenizers.coders import Coded, Coder
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.evaluation.tokenizers.unit_quality import (
    SILENCE,
    Distance,
    Item,
    Phone,
    abx,
    agreement,
    angle,
    frame_labels,
    phone_items,
    unequal,
)
from slm_jax.streams import WORD

PROTOCOL = (
    "phones-1: phones of English held-out utterances placed by pocketsphinx; a frame has the phone "
    "at its middle, silence is left out. PNMI, phone and cluster purity of codes of the coarsest "
    "level; PNMI of the same codes in another order is what chance gives to so many of them. ABX "
    "over phones in the same context: frames are as far apart as the share of levels in which they "
    "differ, or as the angle between features; 0.5 is chance."
)

Aligner = Callable[[np.ndarray, Sequence[str]], list[tuple[str, float, float]]]


def place(corpus: Corpus, rows: Sequence[int], aligner: Aligner) -> list[list[Phone]]:
    """The phones of each of these utterances; none where the text is not known or does not fit."""
    found = (aligner(corpus.audios[i], (corpus.texts[i] or "").split()) for i in rows)
    return [[Phone(*one) for one in phones] for phones in found]


def judge_units(
    coder: Coder,
    coded: Sequence[Coded | None],
    phones: Sequence[Sequence[Phone]],
    voices: Sequence[str],
) -> dict[str, Any]:
    """What a coder's items say of phones.

    Args:
      coder: that made them.
      coded: of each utterance.
      phones: of each utterance, in order.
      voices: who speaks each.

    Returns:
      {"unavailable": why}, or {"agreement": see `agreement`, None for vectors; "within", "across":
      see `abx`, its error None without a triple}.
    """
    if coder.clock == WORD:
        return {"unavailable": "its items are words, not frames"}
    used = [i for i, one in enumerate(phones) if one and coded[i] is not None]
    clock, values = coder.clock, [one and one.values for one in coded]
    labels = [frame_labels(phones[i], clock, len(values[i])) for i in used]
    labels = np.concatenate([np.zeros(0, object), *labels])
    if len(set(labels) - {SILENCE}) < 2:
        return {"unavailable": "no English utterance whose phones could be placed"}
    items = [item for i in used for item in phone_items(phones[i], values[i], clock, voices[i])]
    codes = np.concatenate([values[i][:, 0] for i in used])
    distance = unequal if coder.vocab else angle
    return {
        "agreement": agreement(labels, codes) if coder.vocab else None,
        "within": _abx(items, distance, across=False),
        "across": _abx(items, distance, across=True),
    }


def _abx(items: list[Item], distance: Distance, across: bool) -> dict[str, Any]:
    found = abx(items, distance, across)
    return found | {"error": found["error"] if found["triples"] else None}
