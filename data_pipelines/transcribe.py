"""Words with times: a given transcript is force-aligned, audio without one is transcribed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines import quarantine
from data_pipelines.ingest import rejections, staged
from data_pipelines.progress import Progress
from data_pipelines.quarantine import Rejected
from slm_jax.audio import decode
from slm_jax.data import schema, shards
from slm_jax.errors import UserError
from slm_jax.tokenizers.asr import Asr, Transcript

GROUP = 32  # utterances handed over at a time: the step of the progress display


def transcribe(staging: Path, units: int, asr: Asr) -> None:
    """Adds words to every staged unit; finished units are kept.

    Args:
      staging: the folder that `ingest` filled.
      units: how many units it made.
      asr: the recogniser.

    Raises:
      UserError: there is not one word in all of them.
    """
    counts = [len(shards.ShardReader(staged(staging, "listing", i, units))) for i in range(units)]
    finished = [rejections(staging, "words", i).exists() for i in range(units)]
    done = sum(count for count, ready in zip(counts, finished, strict=True) if ready)
    with Progress("words", sum(counts), done) as progress:
        for index in range(units):
            if not finished[index]:
                _unit(staging, index, units, asr, progress)
    words = [shards.ShardReader(staged(staging, schema.WORDS, i, units)) for i in range(units)]
    if not any(len(reader) for reader in words):
        left_out = [
            r for i in range(units) for r in quarantine.read(rejections(staging, "words", i))
        ]
        raise UserError(
            f"no word was found in any of the {sum(counts)} recordings; the first: "
            f"{left_out[0].path}: {left_out[0].reason} ({left_out[0].detail})",
            "check that the language of the corpus is the one set, and known to the ASR",
        )


def _unit(staging: Path, index: int, units: int, asr: Asr, progress: Progress) -> None:
    listing = shards.ShardReader(staged(staging, "listing", index, units))
    audio = dict(shards.ShardReader(staged(staging, schema.AUDIO, index, units)))
    utterances = [schema.decode("words", id, payload) for id, payload in listing]
    words: dict[str, schema.Utterance] = {}
    rejected = []
    for group in _groups(utterances):  # type: ignore[arg-type]
        audios = [decode.load(audio[u.id]) for u in group]
        for utterance, transcript in zip(group, _hear(asr, group, audios), strict=True):
            if isinstance(transcript, UserError):
                detail = f"{utterance.text!r}: {transcript.message}"
                rejected.append(
                    Rejected(utterance.id, utterance.source, quarantine.MISALIGNED, detail)
                )
            elif not transcript.words:
                detail = utterance.text or "the recogniser heard nothing"
                rejected.append(
                    Rejected(utterance.id, utterance.source, quarantine.NO_WORDS, detail)
                )
            else:
                words[utterance.id] = with_words(utterance, transcript)
        progress.advance(len(group), sum(u.duration for u in group))
    found = [words[u.id] for u in utterances if u.id in words]
    shards.write_shard(staged(staging, schema.WORDS, index, units), found)
    quarantine.write(rejections(staging, "words", index), rejected)


def _hear(
    asr: Asr, group: list[schema.Utterance], audios: list[np.ndarray]
) -> Sequence[Transcript | UserError]:
    """Transcripts of a group; where a given text cannot be aligned, the reason instead."""
    language = group[0].language
    if not group[0].text:
        return asr.transcribe(audios, language)
    try:
        return asr.align(audios, [u.text for u in group], language)
    except UserError:
        return [_align_one(asr, u, audio) for u, audio in zip(group, audios, strict=True)]


def _align_one(asr: Asr, utterance: schema.Utterance, audio: np.ndarray) -> Transcript | UserError:
    try:
        return asr.align([audio], [utterance.text], utterance.language)[0]
    except UserError as error:
        return error


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
        dataclasses.replace(
            word,
            start=round(float(word.start), 3),
            end=round(float(word.end), 3),
            confidence=round(float(word.confidence), 4),
        )
        for word in transcript.words
    )
    return dataclasses.replace(
        utterance, words=words, text=utterance.text or transcript.text.strip()
    )
