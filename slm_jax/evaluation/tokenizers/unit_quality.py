"""What units know of phones: mutual information, purity and ABX, beside what chance would give.

PNMI and purities are those of HuBERT (Hsu et al. 2021, arXiv 2106.07447 §V-D); ABX is that of
ZeroSpeech (Schatz et al. 2013; Dunbar et al. 2021, arXiv 2104.14700 §3.1) over phones in their
context, with any distance between frames.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SILENCE = ""  # label of frames that no phone owns


class Phone(NamedTuple):
    """A phone of an utterance: its name, and start and end in seconds."""

    name: str
    start: float
    end: float


def frame_labels(phones: Sequence[Phone], rate: float, frames: int) -> np.ndarray:
    """The phone at the middle of each of `frames` frames at `rate` Hz, str [frames]."""
    labels = np.full(frames, SILENCE, dtype=object)
    middles = (np.arange(frames) + 0.5) / rate
    for phone in phones:
        labels[(middles >= phone.start) & (middles < phone.end)] = phone.name
    return labels


def agreement(phones: np.ndarray, units: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How much a unit says of the phone it is heard in.

    Args:
      phones: str [n], the phone of each frame; `SILENCE` is left out.
      units: int [n], the unit of each frame.
      seed: of the shuffle.

    Returns:
      "pnmi", the mutual information over the entropy of phones; "phone_purity", the share of frames
      whose phone is the likeliest of its unit; "cluster_purity", the share whose unit is the
      likeliest of its phone; "pnmi_shuffled", the PNMI of the same units in another order, which
      grows with the number of units and is what chance gives; "frames".

    Raises:
      ValueError: no frame has a phone, or all have the same.
    """
    spoken = phones != SILENCE
    phones, units = phones[spoken], units[spoken]
    if len(set(phones)) < 2:
        raise ValueError("agreement needs frames of at least two phones")
    joint = _joint(phones, units)
    shuffled = _joint(phones, np.random.default_rng(seed).permutation(units))
    return {
        "pnmi": _pnmi(joint),
        "phone_purity": float(joint.max(0).sum()),
        "cluster_purity": float(joint.max(1).sum()),
        "pnmi_shuffled": _pnmi(shuffled),
        "frames": len(units),
    }


def _joint(phones: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Shares of frames [phones, units]."""
    _, phone = np.unique(phones.astype(str), return_inverse=True)
    _, unit = np.unique(units, return_inverse=True)
    joint = np.zeros((phone.max() + 1, unit.max() + 1))
    np.add.at(joint, (phone, unit), 1 / len(phone))
    return joint


def _pnmi(joint: np.ndarray) -> float:
    phone, unit = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    some = joint > 0
    information = np.sum(joint[some] * np.log(joint[some] / (phone * unit)[some]))
    return float(information / -np.sum(phone * np.log(phone)))


class Item(NamedTuple):
    """A phone for ABX.

    Attributes:
      name: of the phone.
      context: the phones before and after.
      speaker: who says it.
      frames: [t, D] features or int [t] units, t > 0.
    """

    name: str
    context: tuple[str, str]
    speaker: str
    frames: np.ndarray


Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # frames [t], [u] -> [t, u]


def unequal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of units: int [t], [u] (or [t, K], [u, K]: the share of levels that differ)."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    return np.mean(a[:, None] != b[None], axis=-1)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of features: the angle between them over pi, [t, D], [u, D] -> [t, u]."""
    a, b = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12) for x in (a, b))
    return np.arccos(np.clip(a @ b.T, -1, 1)) / np.pi


def abx(items: Sequence[Item], distance: Distance, across: bool, seed: int = 0, most: int = 5):
    """ABX error: how often a phone X lies nearer to another phone B than to one of its own kind A.

    A and B share context and speaker; X is of A's kind in the same context, by the same speaker, or
    (`across`) by another. Ties count half. Triples are averaged over each (kinds, context,
    speakers), those over contexts and speakers, those over pairs of kinds.

    Args:
      items: phones.
      distance: between frames; two items are as far apart as the best path through it, on average
        over the path (dynamic time warping).
      across: whether X is by another speaker.
      seed, most: of each kind, context and speaker at most `most` items count, drawn by `seed`.

    Returns:
      {"error", "triples"}; the error is NaN without a triple.
    """
    cells: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for at in np.random.default_rng(seed).permutation(len(items)):
        item = items[at]
        cell = cells[item.context, item.speaker, item.name]
        if len(cell) < most:
            cell.append(item.frames)
    speakers = sorted({item.speaker for item in items})
    groups: dict[tuple, list[str]] = defaultdict(list)
    for context, speaker, name in cells:
        groups[context, speaker].append(name)
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    triples = 0
    for (context, speaker), names in groups.items():
        for name, other in itertools.permutations(names, 2):
            ours, theirs = cells[context, speaker, name], cells[context, speaker, other]
            for judge in speakers:
                if (judge != speaker) != across or (context, judge, name) not in cells:
                    continue
                wrong = _errors(ours, theirs, cells[context, judge, name], not across, distance)
                if wrong:
                    errors[name, other].append(float(np.mean(wrong)))
                    triples += len(wrong)
    pairs = [np.mean(found) for found in errors.values()]
    return {"error": float(np.mean(pairs)) if pairs else np.nan, "triples": triples}


def _errors(
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    asked: list[np.ndarray],
    same: bool,
    distance: Distance,
) -> list[float]:
    """1 for each wrong triple, 0.5 for a tie; with `same`, `asked` is `ours`, and an item is not
    compared with itself."""
    wrong = []
    for x, query in enumerate(asked):
        far = [warped(distance(query, b)) for b in theirs]
        for a, own in enumerate(ours):
            if same and a == x:
                continue
            near = warped(distance(query, own))
            wrong += [float(near > one) + 0.5 * float(near == one) for one in far]
    return wrong


def warped(costs: np.ndarray) -> float:
    """Mean cost along the best monotonic path from corner to corner of [t, u]; of paths equally
    cheap, the shortest counts."""
    t, u = costs.shape
    best = np.full((t + 1, u + 1), np.inf)
    steps = np.zeros((t + 1, u + 1))
    best[0, 0] = 0
    for i in range(1, t + 1):
        for j in range(1, u + 1):
            before = min(
                (best[i - 1, j - 1], steps[i - 1, j - 1]),
                (best[i - 1, j], steps[i - 1, j]),
                (best[i, j - 1], steps[i, j - 1]),
            )
            best[i, j], steps[i, j] = before[0] + costs[i - 1, j - 1], before[1] + 1
    return float(best[t, u] / steps[t, u])


def phone_items(
    phones: Sequence[Phone], frames: np.ndarray, rate: float, speaker: str
) -> list[Item]:
    """ABX items of an utterance: its phones that have a neighbour on either side and a frame.

    Args:
      phones: in order, without silence.
      frames: [T, ...] at `rate` Hz.
    """
    found = []
    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        cut = frames[round(phone.start * rate) : round(phone.end * rate)]
        touching = before.end >= phone.start - 1e-6 and after.start <= phone.end + 1e-6
        if len(cut) and touching:
            found.append(Item(phone.name, (before.name, after.name), speaker, cut))
    return found
