"""Ingest: decode, check and re-encode a corpus into staged units of 16 kHz mono FLAC.

A unit is a fixed list of inputs. It gives one shard of audio, one of utterances (transcript as
written, no words yet) and one quarantine list, the latter published last: a unit that has it is
done and is skipped by the next run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import pool, quarantine
from data_pipelines.corpora import SourceUtterance
from data_pipelines.progress import Progress
from data_pipelines.quarantine import Rejected
from slm_jax.audio import decode
from slm_jax.audio.errors import AudioError
from slm_jax.data import schema, shards
from slm_jax.errors import UserError

UNIT_FILES = 128
FRAME = schema.AUDIO_RATE // 20  # 50 ms: the loudest frame says whether a file is silent
SLACK_SECONDS = 0.25  # catalogues round


@dataclasses.dataclass(frozen=True)
class Limits:
    """What audio is taken in.

    Attributes:
      min_seconds, max_seconds: lengths outside are quarantined. Whisper sees 30 s at most.
      silence_db: dBFS that the loudest 50 ms must reach.
    """

    min_seconds: float = 0.25
    max_seconds: float = 30.0
    silence_db: float = -50.0


@dataclasses.dataclass(frozen=True)
class Unit:
    """The payload of one unit: what the worker needs, nothing else."""

    staging: Path
    index: int
    count: int
    inputs: tuple[SourceUtterance, ...]
    limits: Limits
    decoder: str


def staged(staging: Path, family: str, index: int, count: int) -> Path:
    """The shard of a unit: "audio", "listing" (utterances without words) or "words"."""
    return staging / family / shards.shard_name("unit", index, count)


def rejections(staging: Path, stage: str, index: int) -> Path:
    """The quarantine list of a unit in a stage; its presence says that the unit is done."""
    return staging / f"rejected-{stage}" / f"unit-{index:05d}.jsonl"


def ingest(
    utterances: Sequence[SourceUtterance],
    staging: Path,
    limits: Limits,
    decoder: str,
    workers: int,
) -> int:
    """Ingests a corpus with a pool of worker processes; finished units are kept.

    Returns:
      The number of units.

    Raises:
      UserError: nothing at all could be used, or the disk is full.
    """
    starts = range(0, len(utterances), UNIT_FILES)
    units = {}
    for index, start in enumerate(starts):
        inputs = tuple(utterances[start : start + UNIT_FILES])
        if not rejections(staging, "ingest", index).exists():
            unit = Unit(staging, index, len(starts), inputs, limits, decoder)
            units[f"unit-{index:05d}"] = unit
    done = len(utterances) - sum(len(unit.inputs) for unit in units.values())
    with Progress("ingest", len(utterances), done) as progress:
        for name, seconds in pool.run(
            ingest_unit, units, staging / "ledger", min(workers, max(1, len(units)))
        ):
            progress.advance(len(units[name].inputs), seconds)
    rejected = [r for i in range(len(starts)) for r in quarantine.read(_list(staging, i))]
    if len(rejected) == len(utterances):
        why = ", ".join(f"{n} {reason}" for reason, n in quarantine.summary(rejected).items())
        first = f"{rejected[0].path}: {rejected[0].reason} ({rejected[0].detail})"
        raise UserError(
            f"none of the {len(utterances)} files can be used: {why}; the first: {first}",
            "check that they are audio files; another decoder may read them (--decoder pyav)",
        )
    return len(starts)


def _list(staging: Path, index: int) -> Path:
    return rejections(staging, "ingest", index)


def ingest_unit(unit: Unit, guard: pool.Guard) -> float:
    """Ingests one unit (in a worker); returns the seconds of audio taken in."""
    rejected: list[Rejected] = []
    listing: list[schema.Utterance] = []
    # A killed worker may have published the audio shard: the listing must be of the same run of
    # events, so both are made again; equal inputs give equal bytes and the first shard stays.
    audio = _audio_items(unit, guard, listing, rejected)
    shards.write_shard(staged(unit.staging, schema.AUDIO, unit.index, unit.count), audio)
    shards.write_shard(staged(unit.staging, "listing", unit.index, unit.count), listing)
    quarantine.write(_list(unit.staging, unit.index), rejected)
    return sum(utterance.duration for utterance in listing)


def _audio_items(
    unit: Unit, guard: pool.Guard, listing: list[schema.Utterance], rejected: list[Rejected]
) -> Iterator[schema.AudioItem]:
    for source in unit.inputs:
        if not guard.enter(str(source.audio)):
            rejected.append(Rejected(source.id, str(source.audio), quarantine.CRASHED))
            continue
        audio = load(source, unit.limits, unit.decoder)
        if isinstance(audio, Rejected):
            rejected.append(audio)
            continue
        listing.append(
            schema.Utterance(
                id=source.id,
                words=(),
                language=source.language,
                speaker=source.speaker,
                duration=len(audio) / schema.AUDIO_RATE,
                source=source.source,
                text=source.text or "",
            )
        )
        yield schema.AudioItem(source.id, decode.encode_flac(audio))


def load(source: SourceUtterance, limits: Limits, decoder: str) -> np.ndarray | Rejected:
    """Decodes and checks one input.

    Returns:
      float32 [n] at 16 kHz mono, or why it is left out.
    """

    def reject(reason: str, detail: str = "") -> Rejected:
        return Rejected(source.id, str(source.audio), reason, detail)

    if source.text is not None and not source.text.strip():
        return reject(quarantine.NO_TRANSCRIPT, "the transcript is empty")
    try:
        audio = _decoded(source.audio, decoder)
    except AudioError as error:
        return reject(error.reason, error.message)
    except (ValueError, RuntimeError, OSError) as error:  # a decoder surprised by hostile bytes
        return reject("unreadable", repr(error))
    seconds = len(audio) / schema.AUDIO_RATE
    whole = source.start is None and source.end is None
    if whole and source.seconds is not None and seconds < source.seconds - SLACK_SECONDS:
        return reject(quarantine.TRUNCATED, f"{seconds:.2f} s, the catalogue: {source.seconds:.2f}")
    if not whole:
        first, last = source.start or 0.0, source.end if source.end is not None else seconds
        if last > seconds + SLACK_SECONDS or first >= last:
            return reject(
                quarantine.TRUNCATED, f"segment {first:.2f}-{last:.2f} s of {seconds:.2f} s"
            )
        audio = audio[round(first * schema.AUDIO_RATE) : round(last * schema.AUDIO_RATE)]
        seconds = len(audio) / schema.AUDIO_RATE
    if seconds < limits.min_seconds:
        return reject(quarantine.TOO_SHORT, f"{seconds:.2f} s")
    if seconds > limits.max_seconds:
        return reject(quarantine.TOO_LONG, f"{seconds:.1f} s")
    level = loudest_db(audio)
    if level < limits.silence_db:
        return reject(quarantine.SILENT, f"loudest 50 ms at {level:.0f} dBFS")
    return audio


@functools.lru_cache(maxsize=1)  # a long file is often listed as many segments in a row
def _decoded(path: Path, decoder: str) -> np.ndarray:
    return decode.load(path, schema.AUDIO_RATE, decoder)


def loudest_db(audio: np.ndarray) -> float:
    """RMS level of the loudest 50 ms of `audio` [n], in dBFS; -inf for digital silence."""
    padded = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    power = float(np.max(np.mean(np.square(padded, dtype=np.float64), axis=1), initial=0.0))
    return 10 * np.log10(power) if power > 0 else -np.inf
