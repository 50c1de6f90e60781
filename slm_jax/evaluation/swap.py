"""The swap experiment: is a word's prosody in that word's codes, and nowhere else?

One sentence is read twice. In the codes of reading A those of one word are replaced by reading
B's, and the result is decoded with A's speaker vector. If a word's codes are its own prosody, the
word becomes as long and as high as B read it, and its neighbours stay as they were. Tseng et al.
2025 (arXiv 2504.07053, figure 3) show examples; this measures it over many words.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.audio import decode
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.evaluation.prosody import Judges, Prosody
from slm_jax.evaluation.readings import MAX_SECONDS, SEMITONES, TEMPOS, Pair, inner_words
from slm_jax.evaluation.swap_scores import (
    DURATION,
    OWN,
    PITCH,
    Neighbour,
    Swap,
    Values,
    log_changes,
    score,
)
from slm_jax.tokenizers.taste import Taste

FOLDER = "swap"
WORDS = "words.jsonl"
PLAYERS = "players.json"
MOST_WORDS = 12  # of a pair
_NUDGE = 80  # samples: 5 ms, half a frame of the aligner

PROTOCOL = (
    f"swap-1: held-out sentences of at most {MAX_SECONDS:g} s, each read twice. Time-scaled pairs "
    f"are one recording at {TEMPOS[0]:g} and {TEMPOS[1]:g} of its tempo (WSOLA), pitch-shifted "
    f"ones a recording moved by {SEMITONES[0]:+g} and {SEMITONES[1]:+g} semitones, re-spoken ones "
    "the slowest and the fastest reading by one voice. Each reading in turn is A, the other B. In "
    "A's codes those of one word become B's; the result is decoded with A's speaker vector. Taken "
    f"are words with a neighbour on both sides, at most {MOST_WORDS} a pair. Durations are those "
    "of an aligner independent of the tokenizer, in recordings and decoded speech alike; 'own' "
    "are those that the decoder laid out. Pitch is the median of a word's voiced frames, at least "
    "three. Relative: the logarithm of the swapped word over the same word of A decoded unchanged, "
    "against that of B's word over A's in the recordings. Neighbours: the words on both sides, "
    "swapped against unchanged; repeated: the unchanged speech judged again, 5 ms later. A word "
    "that a judge finds no figure for counts as failed and is not scored. Intervals: 95 %, "
    "bootstrap over sentences."
)


def evaluate(
    taste: Taste,
    pairs: Sequence[Pair],
    judges: Judges,
    run_dir: Path,
    players: int = 2,
    advance: Callable[[int], None] = lambda pairs: None,
) -> dict[str, Any]:
    """Runs the protocol; keeps every swap and some clips in RUN/swap.

    Args:
      taste: the tokenizer.
      pairs: of readings.
      judges: of durations and pitch.
      run_dir: folder of the run, made if need be.
      players: pairs of each kind that are kept to be heard.
      advance: is told of each finished pair.

    Returns:
      {"protocol", "tokenizer", "control", "kinds": figures of each kind of pair as `score` gives
      them}; None where a figure is not defined.

    Raises:
      ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("no pairs of readings")
    readings = [reading for pair in pairs for reading in pair.readings]
    codes, speakers = taste.encode([r.audio for r in readings], [r.words for r in readings])
    # The first readings once more, in other batches: a swap with oneself must change nothing.
    same, _ = taste.encode([r.audio for r in readings[::2]], [r.words for r in readings[::2]])
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    swaps: dict[str, list[Swap]] = {pair.kind: [] for pair in pairs}
    kept: dict[str, list[dict[str, Any]]] = {kind: [] for kind in swaps}
    control = []
    for i, pair in enumerate(pairs):
        here = slice(2 * i, 2 * i + 2)
        spoken, repeated = _speak(taste, pair, codes[here], speakers[here], same[i], seed=i)
        found = _judge(pair, spoken, codes[here], judges)
        swaps[pair.kind] += found
        if len(kept[pair.kind]) < players:
            kept[pair.kind] += _keep(folder, pair, spoken[0], [one for one in found if one.first])
        control.append((codes[2 * i], same[i], spoken[0].audios[0], repeated))
        advance(1)
    _write(folder / WORDS, (_line(swap) for found in swaps.values() for swap in found))
    listing = [clips for found in kept.values() for clips in found]
    _write(folder / PLAYERS, [json.dumps(listing, ensure_ascii=False, indent=1)])
    figures = {
        "protocol": PROTOCOL,
        "tokenizer": taste.spec.fingerprint,
        "control": _control(control),
        "kinds": [score(kind, found) for kind, found in swaps.items()],
    }
    return _defined(figures)


def load(run_dir: Path) -> tuple[list[Swap], list[dict[str, Any]]]:
    """The swaps of RUN/swap, and its players: [{"id", "kind", "clips": [...]}]."""
    folder = Path(run_dir) / FOLDER
    lines = (folder / WORDS).read_text(encoding="utf-8").splitlines()
    players = json.loads((folder / PLAYERS).read_text(encoding="utf-8"))
    return [_swap(json.loads(line)) for line in lines], players


def exchange(codes: np.ndarray, others: np.ndarray, place: int) -> np.ndarray:
    """Codes [W, K], those of word `place` from `others` [W, K]."""
    mixed = codes.copy()
    mixed[place] = others[place]
    return mixed


@dataclasses.dataclass(frozen=True, eq=False)
class _Spoken:
    """A reading decoded: unchanged, then once for each of `places` with that word swapped."""

    words: list[str]
    places: list[int]
    audios: list[np.ndarray]
    times: list[list[tuple[float, float]]]  # of each audio's words, as the decoder laid them out


def _speak(
    taste: Taste,
    pair: Pair,
    codes: Sequence[np.ndarray],
    speakers: Sequence[np.ndarray],
    same: np.ndarray,
    seed: int,
) -> tuple[list[_Spoken], np.ndarray]:
    """Both readings as A, and the first with a word from `same`, its own codes found again."""
    texts = [[word.text for word in reading.words] for reading in pair.readings]
    places = inner_words(texts[0])
    drawn = np.random.default_rng(seed).permutation(len(places))[:MOST_WORDS]
    places = sorted(places[i] for i in drawn)
    mixed = [(0, exchange(codes[0], same, places[0]))]
    for a, b in ((0, 1), (1, 0)):
        mixed += [(a, codes[a]), *((a, exchange(codes[a], codes[b], p)) for p in places)]
    audios, times = taste.decode(
        [texts[a] for a, _ in mixed], [ids for _, ids in mixed], [speakers[a] for a, _ in mixed]
    )
    count = 1 + len(places)
    spoken = [
        _Spoken(texts[a], places, audios[1 + a * count :][:count], times[1 + a * count :][:count])
        for a in (0, 1)
    ]
    return spoken, audios[0]


def _judge(
    pair: Pair, spoken: Sequence[_Spoken], codes: Sequence[np.ndarray], judges: Judges
) -> list[Swap]:
    words = [side.words for side in spoken]
    recorded = [_recorded(judges.measure(pair.readings[i].audio, words[i])) for i in (0, 1)]
    decoded = [
        [
            _decoded(judges.measure(audio, side.words), times)
            for audio, times in zip(side.audios, side.times, strict=True)
        ]
        for side in spoken
    ]
    swaps = []
    for a, b in ((0, 1), (1, 0)):
        side = spoken[a]
        later = judges.measure(np.pad(side.audios[0], (_NUDGE, 0)), side.words)
        again = _decoded(later, side.times[0])
        unchanged, whole = decoded[a][0], decoded[b][0]
        for place, swapped in zip(side.places, decoded[a][1:], strict=True):
            measures = {
                name: Values(
                    *(float(of[name][place]) for of in (recorded[a], recorded[b])),
                    *(float(of[name][place]) for of in (unchanged, swapped, whole)),
                    neighbours=tuple(
                        Neighbour(*(float(of[name][at]) for of in (unchanged, again, swapped)))
                        for at in (place - 1, place + 1)
                    ),
                )
                for name in (DURATION, OWN, PITCH)
            }
            recoded = bool(np.any(codes[a][place] != codes[b][place]))
            word, first = side.words[place], a == 0
            swap = Swap(pair.kind, pair.id, pair.sentence, first, place, word, recoded, measures)
            swaps.append(swap)
    return swaps


def _recorded(judged: Prosody) -> dict[str, np.ndarray]:
    return {DURATION: judged.durations, OWN: judged.durations, PITCH: judged.pitches}


def _decoded(judged: Prosody, times: list[tuple[float, float]]) -> dict[str, np.ndarray]:
    own = np.array([end - start for start, end in times])
    return {DURATION: judged.durations, OWN: own, PITCH: judged.pitches}


def _control(found: Sequence[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    """How much a swap with the codes of the same reading, encoded again, changes."""
    changed = sum(int(np.any(codes != same, axis=1).sum()) for codes, same, *_ in found)
    lengths = [len(audio) == len(repeated) for *_, audio, repeated in found]
    differences = [
        float(np.abs(audio - repeated).max(initial=0))
        for *_, audio, repeated in found
        if len(audio) == len(repeated)
    ]
    return {
        "words": sum(len(codes) for codes, *_ in found),
        "words_recoded": changed,
        "swaps": len(found),
        "other_length": lengths.count(False),
        "largest_difference": max(differences, default=None),
    }


def _keep(folder: Path, pair: Pair, spoken: _Spoken, swaps: Sequence[Swap]) -> list[dict[str, Any]]:
    """Writes the clips of the word that the two recordings read most differently."""
    measure = PITCH if pair.kind == "pitch-shifted" else DURATION
    wanted, _ = log_changes(swaps, measure)
    if np.isnan(wanted).all():
        return []
    chosen = int(np.nanargmax(np.abs(wanted)))
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{pair.kind}-{pair.id}")
    text, word = " ".join(spoken.words), swaps[chosen].word
    clips = []
    for name, what, audio in [
        ("A", "the recording", pair.readings[0].audio),
        ("B", "the recording", pair.readings[1].audio),
        ("A decoded", "with its own codes", spoken.audios[0]),
        ("A swapped", f"with the codes of “{word}” from B", spoken.audios[1 + chosen]),
    ]:
        file = f"{slug}-{name.replace(' ', '-')}.wav"
        decode.write_wav(folder / file, audio, AUDIO_RATE)
        clips.append({"name": name, "file": file, "text": f"{what}: {text}"})
    return [{"id": pair.id, "kind": pair.kind, "clips": clips}]


def _line(swap: Swap) -> str:
    return json.dumps(_defined(dataclasses.asdict(swap)), ensure_ascii=False, allow_nan=False)


def _swap(data: dict[str, Any]) -> Swap:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    def values(found: dict[str, Any]) -> Values:
        beside = found.pop("neighbours")
        neighbours = (Neighbour(*map(number, one.values())) for one in beside)
        return Values(*map(number, found.values()), neighbours=tuple(neighbours))

    measures = {name: values(found) for name, found in data.pop("measures").items()}
    return Swap(**data, measures=measures)


def _defined(value: Any) -> Any:
    """JSON has no NaN: None stands where a figure is not defined."""
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
