"""Words with times: a given transcript is force-aligned, audio without one is transcribed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data_pipelines import quarantine
from data_pipelines.ingest import rejections, staged
from data_pipelines.progress import Progress
from data_pipelines.quarantine import Rejected
from slm_jax.audio import decode
from slm_jax.data import schema, shards

GROUP = 32  # utterances handed over at a time: the step of the progress display


class Word(Protocol):
    text: str
    start: float
    end: float
    confidence: float


class Transcript(Protocol):
    text: str
    words: Sequence[Word]


class Recogniser(Protocol):
    """What `slm_jax.tokenizers.asr.Asr` offers; audio is float32 [n] at 16 kHz."""

    def transcribe(self, audios: list[np.ndarray], language: str) -> list[Transcript]: ...

    def align(
        self, audios: list[np.ndarray], texts: list[str], language: str, context: Literal["bucket"]
    ) -> list[Transcript]: ...


def transcribe(staging: Path, units: int, asr: Recogniser) -> None:
    """Adds words to every staged unit; finished units are kept.

    Args:
      staging: the folder that `ingest` filled.
      units: how many units it made.
      asr: the recogniser.
    """
    counts = [len(shards.ShardReader(staged(staging, "listing", i, units))) for i in range(units)]
    finished = [rejections(staging, "words", i).exists() for i in range(units)]
    done = sum(count for count, ready in zip(counts, finished, strict=True) if ready)
    with Progress("words", sum(counts), done) as progress:
        for index in range(units):
            if not finished[index]:
                _unit(staging, index, units, asr, progress)


def _unit(staging: Path, index: int, units: int, asr: Recogniser, progress: Progress) -> None:
    listing = shards.ShardReader(staged(staging, "listing", index, units))
    audio = dict(shards.ShardReader(staged(staging, schema.AUDIO, index, units)))
    utterances = [schema.decode("words", id, payload) for id, payload in listing]
    words: dict[str, schema.Utterance] = {}
    rejected = []
    for group in _groups(utterances):  # type: ignore[arg-type]
        audios = [decode.load(audio[u.id]) for u in group]
        given = bool(group[0].text)
        transcripts = (
            asr.align(audios, [u.text for u in group]) if given else asr.transcribe(audios)
        )
        for utterance, transcript in zip(group, transcripts, strict=True):
            if transcript.words:
                words[utterance.id] = with_words(utterance, transcript)
            else:
                detail = utterance.text if given else "the recogniser heard nothing"
                rejected.append(
                    Rejected(utterance.id, utterance.source, quarantine.NO_WORDS, detail)
                )
        progress.advance(len(group), sum(u.duration for u in group))
    found = [words[u.id] for u in utterances if u.id in words]
    shards.write_shard(staged(staging, schema.WORDS, index, units), found)
    quarantine.write(rejections(staging, "words", index), rejected)


def _groups(utterances: list[schema.Utterance]) -> list[list[schema.Utterance]]:
    """Groups of one language and like length, with texts given or all missing."""
    kinds: dict[tuple[str, bool], list[schema.Utterance]] = {}
    for utterance in sorted(utterances, key=lambda u: u.duration):
        kinds.setdefault((utterance.language, bool(utterance.text)), []).append(utterance)
    return [
        like[start : start + GROUP]
        for like in kinds.values()
        for start in range(0, len(like), GROUP)
    ]


def with_words(utterance: schema.Utterance, transcript: Transcript) -> schema.Utterance:
    """`utterance` with the words of its transcript; a given text is kept as written."""
    words = tuple(
        schema.Word(w.text, round(w.start, 3), round(w.end, 3), round(float(w.confidence), 4))
        for w in transcript.words
    )
    return schema.Utterance(
        id=utterance.id,
        words=words,
        language=utterance.language,
        speaker=utterance.speaker,
        duration=utterance.duration,
        source=utterance.source,
        text=utterance.text or transcript.text.strip(),
    )
