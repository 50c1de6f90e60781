"""Derived stream families: text-LLM ids, TASTE tokens, speaker vectors, codes of any tokenizer.

Each shard of a family is computed from the same shard of "words" (and "audio") and appears
atomically; shards that exist are kept. Nothing else in the dataset is touched, so a tokenizer can
be added at any time.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from data_pipelines.progress import Progress
from slm_jax.audio import decode
from slm_jax.audio.resample import resample
from slm_jax.data import manifest, schema, shards
from slm_jax.streams import WORD, StreamSpec
from slm_jax.tokenizers.asr_units import AsrUnits
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.text import TextTokenizer, encode_words
from slm_jax.tokenizers.tokenizer import Tokenizer

GROUP = 32  # utterances handed over at a time: the step of the progress display
BATCH = 8  # utterances of like length that a tokenizer gets; each shape of a batch is compiled
SECONDS = 4  # that lengths of batches are multiples of
Columns: TypeAlias = list[list[schema.StreamItem]]


def text_spec(family: str, tokenizer: TextTokenizer) -> StreamSpec:
    """The spec of a family of text ids: any number of ids a word, on the word clock."""
    return StreamSpec(
        family, "codes", WORD, (tokenizer.vocab_size,), fingerprint=tokenizer.fingerprint
    )


def text_item(utterance: schema.Utterance, tokenizer: TextTokenizer) -> schema.StreamItem:
    """Ids of an utterance, and the word of each."""
    words = [word.text for word in utterance.words]
    ids, index = encode_words(tokenizer, words, utterance.language)
    return schema.StreamItem(
        utterance.id, np.array(ids, np.int32).reshape(-1, 1), np.array(index, np.int32)
    )


def add_text(root: Path, family: str, tokenizer: TextTokenizer) -> None:
    """Adds the ids of a text tokenizer to a dataset.

    Raises:
      UserError: the dataset has a family of this name from another tokenizer.
    """

    def columns(file: str, progress: Progress) -> Columns:
        items = [text_item(u, tokenizer) for u in _utterances(root, file)]
        progress.advance(len(items))
        return [items]

    _add(root, [text_spec(family, tokenizer)], columns)


def add_taste(root: Path, taste: Taste) -> None:
    """Adds TASTE tokens and speaker vectors to a dataset with audio and words.

    Raises:
      UserError: the dataset has them from other weights.
    """

    def columns(file: str, progress: Progress) -> Columns:
        utterances = _utterances(root, file)
        audio = shards.ShardReader(root / schema.AUDIO / file)
        codes: dict[str, schema.StreamItem] = {}
        speakers: dict[str, schema.StreamItem] = {}
        for rows in _alike(utterances, GROUP):
            batch = [utterances[row] for row in rows]
            made = taste.encode(
                [decode.load(audio.read(row)[1]) for row in rows], [list(u.words) for u in batch]
            )
            for utterance, code, speaker in zip(batch, *made, strict=True):
                vector = np.asarray(speaker, np.float32).reshape(1, -1)
                codes[utterance.id] = schema.StreamItem(utterance.id, np.asarray(code, np.int32))
                speakers[utterance.id] = schema.StreamItem(utterance.id, vector)
            progress.advance(len(batch), sum(u.duration for u in batch))
        ids = [u.id for u in utterances]
        return [[codes[id] for id in ids], [speakers[id] for id in ids]]

    _add(root, [taste.spec, taste.speaker_spec], columns)


def add_codes(root: Path, family: str, tokenizer: Tokenizer | AsrUnits) -> None:
    """Adds what a speech tokenizer on a rate of its own makes of the audio of a dataset: codes, or
    vectors.

    Raises:
      UserError: the dataset has a family of this name from other weights.
    """

    def columns(file: str, progress: Progress) -> Columns:
        utterances = _utterances(root, file)
        audio = shards.ShardReader(root / schema.AUDIO / file)
        items: dict[int, schema.StreamItem] = {}
        for rows in _alike(utterances, BATCH):
            heard = [decode.load(audio.read(row)[1]) for row in rows]
            heard = [resample(x, schema.AUDIO_RATE, tokenizer.sample_rate) for x in heard]
            lengths = np.zeros(BATCH, np.int32)
            lengths[: len(heard)] = [len(x) for x in heard]
            padded = bucket(lengths.max(), SECONDS * tokenizer.sample_rate)
            batch = np.zeros((BATCH, padded), np.float32)
            for into, x in zip(batch, heard, strict=False):
                into[: len(x)] = x
            codes, frames = (np.asarray(part) for part in tokenizer.encode(batch, lengths)[:2])
            for i, row in enumerate(rows):
                items[row] = schema.StreamItem(utterances[row].id, codes[i, : frames[i]])
            progress.advance(len(rows), sum(utterances[row].duration for row in rows))
        return [[items[row] for row in range(len(utterances))]]

    _add(root, [dataclasses.replace(tokenizer.spec, name=family)], columns)


def _alike(utterances: list[schema.Utterance], count: int) -> list[list[int]]:
    """Rows in groups of `count` of like length, which carry little padding."""
    order = sorted(range(len(utterances)), key=lambda row: utterances[row].duration)
    return [order[start : start + count] for start in range(0, len(order), count)]


def _add(root: Path, specs: list[StreamSpec], columns: Callable[[str, Progress], Columns]) -> None:
    """Writes the missing shards of families that are made together, and declares the families.

    Args:
      columns: (shard file name, progress) -> the items of that shard, a list per spec.
    """
    dataset = manifest.load_manifest(root)
    todo = [spec for spec in specs if dataset.families.get(spec.name) is None]
    for spec in specs:
        if spec in todo:
            _drop_strangers(root / spec.name, spec.fingerprint)
        else:
            manifest.add_family(root, spec)  # fails if the family there is another one
    files = {
        shards.shard_name(split, i, len(counts)): count
        for split, counts in dataset.splits.items()
        for i, count in enumerate(counts)
    }
    missing = {
        file: count
        for file, count in files.items()
        if not all((root / spec.name / file).exists() for spec in todo)
    }
    total = sum(files.values())
    label = "+".join(spec.name for spec in todo)
    with Progress(label, total, total - sum(missing.values())) as progress:
        for file in missing:
            for spec, items in zip(specs, columns(file, progress), strict=True):
                if spec in todo:
                    shards.write_shard(root / spec.name / file, items)
    for spec in todo:
        manifest.add_family(root, spec)


def _drop_strangers(folder: Path, fingerprint: str) -> None:
    """Removes shards that an interrupted run of another tokenizer left; marks the folder ours."""
    marker = folder / ".fingerprint"
    if folder.exists() and (not marker.exists() or marker.read_text() != fingerprint):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(fingerprint)


def _utterances(root: Path, file: str) -> list[schema.Utterance]:
    found = [
        schema.decode("words", id, payload)
        for id, payload in shards.ShardReader(root / schema.WORDS / file)
    ]
    return [item for item in found if isinstance(item, schema.Utterance)]
