"""The speech that tokenizers are compared on, and other speech to train probes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from slm_jax.audio.decode import load
from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, Record, Word
from slm_jax.errors import UserError
from slm_jax.evaluation.run import held_out_records
from slm_jax.streams import fingerprint

_FAMILIES = (WORDS, AUDIO)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """What is spoken, one list entry an utterance.

    Attributes:
      sets: name of the dataset of each.
      voices: who speaks, as set/speaker.
      languages: BCP 47 codes.
      texts: what is said, None where nobody knows or where it is not English.
      words: the same with times.
      audios: float32 [n], 16 kHz mono.
    """

    ids: list[str]
    sets: list[str]
    voices: list[str]
    languages: list[str]
    texts: list[str | None]
    words: list[Sequence[Word]]
    audios: list[np.ndarray]

    @property
    def seconds(self) -> float:
        return sum(len(audio) for audio in self.audios) / AUDIO_RATE

    @property
    def fingerprint(self) -> str:
        """Equal for equal ids and samples."""
        return fingerprint(self.ids, *(audio.tobytes() for audio in self.audios))


def open_held_out(datasets: Sequence[str], limit: int | None) -> Corpus:
    """Held-out utterances of datasets with "words" and "audio"; `limit` of each at most. Texts that
    are not English are left out, the utterances are not.

    Raises:
      UserError: a dataset has no held-out utterance, or all of them are of one voice.
    """
    parts = {}
    for name in datasets:
        opened = registry.get(name).open(_FAMILIES)
        parts[name] = held_out_records(opened, list(_FAMILIES))[:limit]
        if not parts[name]:
            raise UserError(f"dataset {name} has no held-out utterance", "leave it out")
    corpus = _corpus((name, record) for name, records in parts.items() for record in records)
    if len(set(corpus.voices)) < 2:
        raise UserError("all of it is one voice", "add a dataset of another: --datasets A B")
    return corpus


def open_training(datasets: Sequence[str], limit: int) -> Corpus:
    """Like `open_held_out`, but of the train splits: `limit` utterances of each, drawn with a fixed
    seed.

    Raises:
      UserError: no dataset has a train split with anything in it, or nothing is asked for.
    """
    if limit < 1:
        raise UserError(f"{limit} utterances to train probes on", "ask for one or more")
    found = []
    for name in datasets:
        opened = registry.get(name).open(_FAMILIES)
        split = opened.split("train", _FAMILIES) if "train" in opened.manifest.splits else ()
        drawn = np.random.default_rng(0).permutation(len(split))[:limit]
        found += [(name, split[int(i)]) for i in sorted(drawn)]
    if not found:
        raise UserError(
            f"no train split of {', '.join(datasets)} has an utterance to train probes on",
            "add a dataset that has one: --datasets A B",
        )
    return _corpus(found)


def _corpus(found: Iterable[tuple[str, Record]]) -> Corpus:
    corpus = Corpus([], [], [], [], [], [], [])
    for dataset, record in found:
        utterance, name = record[WORDS], Path(dataset).name
        corpus.ids.append(f"{name}/{utterance.id}")
        corpus.sets.append(name)
        corpus.voices.append(f"{name}/{utterance.speaker}")
        corpus.languages.append(utterance.language)
        corpus.texts.append(utterance.text if utterance.language == "en" else None)
        corpus.words.append(utterance.words)
        corpus.audios.append(load(record[AUDIO].flac))
    return corpus
