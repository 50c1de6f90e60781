"""From staged units to a dataset: splits, families "audio" and "words", manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.ingest import staged
from slm_jax.data import manifest, schema, shards
from slm_jax.data.split import SPLITS, split_of


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a staged record stands."""

    unit: int
    row: int


def publish(
    staging: Path,
    units: int,
    root: Path,
    name: str,
    *,
    words_fingerprint: str,
    licences: Sequence[str],
    command: str,
    records_per_shard: int,
) -> manifest.Manifest:
    """Writes the shards of "audio" and "words", then the manifest; shards that exist are kept.

    The split of a record is that of its transcript; within a split the order is the corpus'.
    """
    places: dict[str, list[Place]] = {split: [] for split in SPLITS}
    readers = [shards.ShardReader(staged(staging, schema.WORDS, i, units)) for i in range(units)]
    for unit, reader in enumerate(readers):
        for row, (id, payload) in enumerate(reader):
            utterance = schema.decode("words", id, payload)
            assert isinstance(utterance, schema.Utterance)
            places[split_of(utterance.text)].append(Place(unit, row))
    for split, all_places in places.items():
        count = max(1, -(-len(all_places) // records_per_shard))
        for shard in range(count):
            part = all_places[shard * records_per_shard :][:records_per_shard]
            file = shards.shard_name(split, shard, count)
            if not (root / schema.WORDS / file).exists():
                shards.write_shard(root / schema.AUDIO / file, _audio(staging, units, part))
                shards.write_shard(root / schema.WORDS / file, _words(readers, part))
    specs = [schema.words_spec(words_fingerprint), schema.audio_spec()]
    return manifest.build_manifest(root, name, specs, licences=licences, command=command)


def _words(readers: list[shards.ShardReader], places: list[Place]) -> Iterator[schema.Item]:
    for place in places:
        yield schema.decode("words", *readers[place.unit].read(place.row))


def _audio(staging: Path, units: int, places: list[Place]) -> Iterator[schema.Item]:
    """The audio of `places`, joined by id: units may hold audio in which no word was found."""
    current = -1
    rows: dict[str, int] = {}
    audio = words = None
    for place in places:
        if place.unit != current:
            current = place.unit
            audio = shards.ShardReader(staged(staging, schema.AUDIO, current, units))
            words = shards.ShardReader(staged(staging, schema.WORDS, current, units))
            rows = {id: row for row, (id, _) in enumerate(audio)}
        assert audio is not None and words is not None
        id, _ = words.read(place.row)
        yield schema.AudioItem(id, audio.read(rows[id])[1])
