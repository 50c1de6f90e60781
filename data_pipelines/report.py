"""What a build made and left out: DIR/report.json, and the same for a person."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import quarantine
from data_pipelines.progress import Progress
from data_pipelines.transcribe import GROUP
from slm_jax.audio import decode
from slm_jax.data import schema
from slm_jax.data.dataset import open_dataset
from slm_jax.evaluation.wer import word_error_rate as score
from slm_jax.tokenizers.asr import Asr

FILE = "report.json"


class Stages:
    """Wall-clock seconds of the stages that this run went through."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 1)


def write(root: Path, stage_seconds: dict[str, float]) -> None:
    """Writes the report of a dataset that is complete; figures of earlier runs are kept."""
    held = open_dataset(root)
    splits: dict[str, Any] = {}
    words = confidence = 0.0
    speakers: set[str] = set()
    languages: set[str] = set()
    for split in held.manifest.splits:
        seconds = 0.0
        records = held.split(split)
        for record in records:
            utterance = record[schema.WORDS]
            assert isinstance(utterance, schema.Utterance)
            seconds += utterance.duration
            words += len(utterance.words)
            confidence += sum(word.confidence for word in utterance.words)
            speakers.add(utterance.speaker)
            languages.add(utterance.language)
        splits[split] = {"utterances": len(records), "hours": round(seconds / 3600, 4)}
    rejected = quarantine.read(root / quarantine.FILE)
    old = read(root)
    figures = {
        "name": held.manifest.name,
        "splits": splits,
        "words": int(words),
        "speakers": len(speakers - {""}),
        "languages": sorted(languages),
        "licences": list(held.manifest.licences),
        "families": {name: spec.fingerprint for name, spec in held.specs.items()},
        "quarantined": quarantine.summary(rejected),
        "stage_seconds": old.get("stage_seconds", {}) | stage_seconds,
    }
    if schema.AUDIO in held.specs:
        figures["word_confidence"] = round(confidence / max(words, 1), 4)
    _save(root, old | figures)


def add(root: Path, key: str, value: Any) -> None:
    """Adds one figure to the report."""
    _save(root, read(root) | {key: value})


def read(root: Path) -> dict[str, Any]:
    """The report, {} if there is none yet."""
    path = root / FILE
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def word_error_rate(root: Path, asr: Asr) -> dict[str, Any]:
    """Transcribes a whole dataset and scores it against its transcripts."""
    held = open_dataset(root)
    references: list[str] = []
    heard: list[str] = []
    total = sum(sum(counts) for counts in held.manifest.splits.values())
    with Progress("wer", total) as progress:
        for split in held.manifest.splits:
            records = held.split(split, [schema.WORDS, schema.AUDIO])
            for start in range(0, len(records), GROUP):
                group = [records[i] for i in range(start, min(start + GROUP, len(records)))]
                audios = [decode.load(record[schema.AUDIO].flac) for record in group]  # type: ignore
                language = group[0][schema.WORDS].language  # type: ignore[union-attr]
                found = asr.transcribe(audios, language, word_times=False)
                heard += [transcript.text for transcript in found]
                references += [record[schema.WORDS].text for record in group]  # type: ignore
                progress.advance(len(group), sum(len(a) for a in audios) / schema.AUDIO_RATE)
    return score(references, heard).to_json()


def text(root: Path) -> str:
    """The report in a few lines."""
    figures = read(root)
    lines = [f"{figures['name']}: {', '.join(figures['families'])}"]
    for split, held in figures["splits"].items():
        hours = f", {held['hours']:.2f} h" if held["hours"] else ""
        lines.append(f"  {split}: {held['utterances']} utterances{hours}")
    if "word_confidence" in figures:
        lines.append(f"  mean confidence of the words: {figures['word_confidence']:.2f}")
    if "wer" in figures:
        lines.append(f"  word error rate of the ASR: {100 * figures['wer']['wer']:.1f} %")
    left_out = figures["quarantined"]
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.append(f"  left out: {reasons} ({root / quarantine.FILE})")
    return "\n".join(lines)


def _save(root: Path, figures: dict[str, Any]) -> None:
    temporary = root / f".{FILE}.tmp"
    temporary.write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, root / FILE)
