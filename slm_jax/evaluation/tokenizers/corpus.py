"""The speech that tokenizers are compared on, and other speech to train probes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm_jax.audio.decode import load
from slm_jax.data import registry
from slm_jax.data.dataset import Dataset
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, Record, Utterance, Word
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
      licences: of each set, by its name.
    """

    ids: list[str] = dataclasses.field(default_factory=list)
    sets: list[str] = dataclasses.field(default_factory=list)
    voices: list[str] = dataclasses.field(default_factory=list)
    languages: list[str] = dataclasses.field(default_factory=list)
    texts: list[str | None] = dataclasses.field(default_factory=list)
    words: list[Sequence[Word]] = dataclasses.field(default_factory=list)
    audios: list[np.ndarray] = dataclasses.field(default_factory=list)
    licences: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, utterance: Utterance, audio: np.ndarray) -> None:
        """Adds an utterance of the set `name`; a text that is not English is left out."""
        self.ids.append(f"{name}/{utterance.id}")
        self.sets.append(name)
        self.voices.append(f"{name}/{utterance.speaker}")
        self.languages.append(utterance.language)
        self.texts.append(utterance.text if utterance.language == "en" else None)
        self.words.append(utterance.words)
        self.audios.append(audio)

    def extend(self, other: Corpus) -> None:
        """Adds all of another corpus."""
        for field in dataclasses.fields(self)[:-1]:
            getattr(self, field.name).extend(getattr(other, field.name))
        self.licences.update(other.licences)

    @property
    def main(self) -> np.ndarray:
        """bool [n], the utterances that means are of: English ones, or all where there is none."""
        english = np.array([language == "en" for language in self.languages])
        return english | ~english.any()

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
      UserError: a dataset has no held-out utterance.
    """
    corpus = Corpus()
    for name in datasets:
        opened = registry.get(name).open(_FAMILIES)
        records = held_out_records(opened, list(_FAMILIES))[:limit]
        if not records:
            raise UserError(f"dataset {name} has no held-out utterance", "leave it out")
        _add(corpus, name, opened, records)
    return corpus


def open_training(datasets: Sequence[str], limit: int) -> Corpus:
    """Like `open_held_out`, but of the train splits: `limit` utterances of each, drawn with a fixed
    seed.

    Raises:
      UserError: no dataset has a train split with anything in it, or nothing is asked for.
    """
    if limit < 1:
        raise UserError(f"{limit} utterances to train probes on", "ask for one or more")
    corpus = Corpus()
    for name in datasets:
        opened = registry.get(name).open(_FAMILIES)
        split = opened.split("train", _FAMILIES) if "train" in opened.manifest.splits else ()
        drawn = np.random.default_rng(0).permutation(len(split))[:limit]
        _add(corpus, name, opened, [split[int(i)] for i in sorted(drawn)])
    if not corpus.ids:
        raise UserError(
            f"no train split of {', '.join(datasets)} has an utterance to train probes on",
            "add a dataset that has one: --datasets A B",
        )
    return corpus


def _add(corpus: Corpus, dataset: str, opened: Dataset, records: Sequence[Record]) -> None:
    name = Path(dataset).name
    for record in records:
        corpus.add(name, record[WORDS], load(record[AUDIO].flac))
    corpus.licences[name] = ", ".join(opened.manifest.licences)
