"""Shows a dataset to a person.

python -m slm_jax.data.inspect DIR                           what it holds
python -m slm_jax.data.inspect DIR --split train --index 3   one utterance, word by word
python -m slm_jax.data.inspect DIR --verify                  reads and hashes every byte
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slm_jax.data import schema
from slm_jax.data.dataset import Dataset, Split, open_dataset
from slm_jax.errors import UserError, run_main
from slm_jax.streams import UTTERANCE, WORD, StreamSpec

QUARANTINE = "quarantine.jsonl"
_SHOWN = 12  # values of a stream that has no place in the table of words


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; UserError if there is no such dataset, split, record, or a shard is damaged."""
    parser = argparse.ArgumentParser(
        prog="python -m slm_jax.data.inspect", description="Shows a dataset to a person."
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--split", default="train")
    parser.add_argument("--index", type=int, help="show this utterance of the split")
    parser.add_argument("--verify", action="store_true", help="check every record and hash")
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    dataset = open_dataset(args.folder)
    if args.index is None:
        show_dataset(dataset, console)
    else:
        show_record(dataset, args.split, args.index, console)
    if args.verify:
        dataset.verify()
        console.print("verified: every checksum fits", style="green")


def show_dataset(dataset: Dataset, console: Console) -> None:
    """Prints families, splits, licences, tombstones and what was quarantined."""
    manifest = dataset.manifest
    console.print(f"[bold]{escape(manifest.name)}[/bold]  {dataset.root}")
    console.print(f"schema {manifest.schema_version}, built by: {manifest.command or 'unknown'}")
    console.print(f"licences: {'; '.join(manifest.licences) or 'none stated'}", markup=False)
    console.print(_families(dataset), _splits(dataset))
    if manifest.tombstones:
        console.print(_counts("withdrawn", [t.reason for t in manifest.tombstones.values()]))
    path = dataset.root / QUARANTINE
    if path.exists():
        reasons = [json.loads(line)["reason"] for line in path.read_text("utf-8").splitlines()]
        console.print(_counts("quarantined", reasons))


def show_record(dataset: Dataset, split: str, index: int, console: Console) -> None:
    """Prints one utterance: its words with times and the ids of each stream on the word clock.

    Raises:
      UserError: no such split or index.
    """
    records = dataset.split(split, list(dataset.specs))
    if not -len(records) <= index < len(records):
        message = f"{dataset.root} has no record {index} in split {split!r}"
        raise UserError(message, f"take an index below {len(records)}")
    record = records[index]
    utterance = record[schema.WORDS]
    console.print(f"[bold]{escape(utterance.id)}[/bold]  {split} {index}")
    console.print(
        f"{utterance.duration:.2f} s, language {utterance.language or '?'}, "
        f"speaker {utterance.speaker or '?'}, from {utterance.source or '?'}",
        markup=False,
    )
    console.print(f"“{utterance.text}”", markup=False)
    console.print(_words(records, record))
    for name, spec in records.specs.items():
        item = record[name]
        if isinstance(item, schema.AudioItem):
            console.print(f"{name}: {len(item.flac):,} bytes of FLAC")
        elif isinstance(item, schema.StreamItem) and spec.clock != WORD:
            shown = np.array2string(item.values.ravel()[:_SHOWN], precision=3, max_line_width=120)
            rest = " ..." if item.values.size > _SHOWN else ""
            console.print(f"{name} {list(item.values.shape)}: {shown}{rest}", markup=False)


def _families(dataset: Dataset) -> Table:
    heads = ("family", "kind", "clock", "vocabulary", "look-ahead", "fingerprint", "files", "MB")
    table = Table(*heads, title="families", title_justify="left")
    for name, family in dataset.manifest.families.items():
        spec = family.spec
        size = sum(info.bytes for info in family.files.values()) / 1e6
        table.add_row(
            escape(name),
            spec.kind,
            _clock(spec),
            " ".join(map(str, spec.vocab)) or (f"width {spec.width}" if spec.width else "-"),
            f"{spec.lookahead:g} s",
            spec.fingerprint or "-",
            str(len(family.files)),
            f"{size:.1f}",
        )
    return table


def _splits(dataset: Dataset) -> Table:
    heads = ("split", "records", "hours", "words", "words/s", "confidence", "speakers", "languages")
    table = Table(*heads, title="splits", title_justify="left")
    for name in dataset.manifest.splits:
        seconds, confidences, speakers, languages, records = 0.0, [], set(), set(), 0
        for record in dataset.split(name):
            utterance = record[schema.WORDS]
            records += 1
            seconds += utterance.duration
            confidences += [word.confidence for word in utterance.words]
            speakers.add(utterance.speaker)
            languages.add(utterance.language)
        table.add_row(
            name,
            f"{records:,}",
            f"{seconds / 3600:.3f}",
            f"{len(confidences):,}",
            f"{len(confidences) / seconds:.2f}" if seconds else "-",
            f"{np.mean(confidences):.3f}" if confidences else "-",
            str(len(speakers)),
            " ".join(sorted(languages)),
        )
    return table


def _words(records: Split, record: schema.Record) -> Table:
    streams = [
        name
        for name, spec in records.specs.items()
        if spec.clock == WORD and isinstance(record[name], schema.StreamItem)
    ]
    utterance = record[schema.WORDS]
    table = Table("", "word", "start", "end", "confidence", *streams)
    for i, word in enumerate(utterance.words):
        cells = []
        for name in streams:
            item = record[name]
            place = np.arange(len(item.values)) if item.index is None else item.index
            cells.append(" ".join(str(v) for v in item.values[place == i].ravel()))
        times = (f"{word.start:.2f}", f"{word.end:.2f}", f"{word.confidence:.2f}")
        table.add_row(str(i), escape(word.text), *times, *cells)
    return table


def _counts(title: str, reasons: list[str]) -> Table:
    table = Table(title, "utterances")
    for reason, count in collections.Counter(reasons).most_common():
        table.add_row(escape(reason), str(count))
    return table


def _clock(spec: StreamSpec) -> str:
    return str(spec.clock) if spec.clock in (WORD, UTTERANCE) else f"{spec.clock:g} Hz"


if __name__ == "__main__":
    run_main(main)
