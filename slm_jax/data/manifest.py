"""The manifest: which files make a dataset, and what is in them.

    DIR/manifest.json
    DIR/<family>/<split>-00000-of-0000N.arrayrecord

All families of a dataset have the same partition and order: record i of shard s is the same
utterance in each of them. The manifest is written last, so a folder without one is unfinished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_jax.data import schema, shards
from slm_jax.data.shards import ShardInfo
from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec, fingerprint

FILE = "manifest.json"
SCHEMA_VERSION = 1
PIPELINE = "run the data pipeline that builds it; it continues where it stopped"


@dataclasses.dataclass(frozen=True)
class Family:
    """One stream over all utterances: what it is, and its files by path relative to the dataset."""

    spec: StreamSpec
    files: Mapping[str, ShardInfo]


@dataclasses.dataclass(frozen=True)
class Tombstone:
    """An utterance that must not be used any more (withdrawn consent, licence, bad label)."""

    split: str
    index: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A dataset at one moment.

    Attributes:
      name: of the dataset.
      splits: split -> records of each of its shards, in order.
      families: name -> Family; "words" is always there.
      licences: of the sources, with attribution where they ask for it.
      tombstones: id -> Tombstone.
      command: the pipeline command that builds or completes the dataset.
      schema_version: of the records.
    """

    name: str
    splits: Mapping[str, tuple[int, ...]]
    families: Mapping[str, Family]
    licences: tuple[str, ...] = ()
    tombstones: Mapping[str, Tombstone] = dataclasses.field(default_factory=dict)
    command: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def remedy(self) -> str:
        """What to do when files of this dataset are missing or damaged."""
        return f"run: {self.command}" if self.command else PIPELINE

    def files(self, split: str, family: str) -> list[str]:
        """Relative paths of a family's shards of a split, in order."""
        count = len(self.splits[split])
        return [f"{family}/{shards.shard_name(split, i, count)}" for i in range(count)]

    def fingerprint(self, split: str, families: Sequence[str]) -> str:
        """Digest of the content of some families of a split, tombstones included."""
        hashes = [
            [self.families[f].files[path].sha256 for path in self.files(split, f)]
            for f in sorted(families)
        ]
        dead = sorted(t.index for t in self.tombstones.values() if t.split == split)
        return fingerprint(sorted(families), hashes, dead)

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for name, family in self.families.items():
            data["families"][name]["spec"] = family.spec.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        families = {
            name: Family(
                StreamSpec.from_json(f["spec"]),
                {path: ShardInfo(**info) for path, info in f["files"].items()},
            )
            for name, f in data["families"].items()
        }
        changed = {
            "splits": {name: tuple(counts) for name, counts in data["splits"].items()},
            "families": families,
            "licences": tuple(data["licences"]),
            "tombstones": {id: Tombstone(**t) for id, t in data["tombstones"].items()},
        }
        return cls(**(dict(data) | changed))


def load_manifest(root: Path, remedy: str = PIPELINE) -> Manifest:
    """Reads DIR/manifest.json.

    Raises:
      UserError: there is none (the dataset is unfinished or elsewhere), it is damaged, or it was
        written by a newer version.
    """
    path = Path(root) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{root} is not a complete dataset: it has no {FILE}", remedy) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", f"delete it, then {remedy}") from error
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        message = f"{path} has schema version {version}, this slm_jax reads {SCHEMA_VERSION}"
        raise UserError(message, "use the slm_jax that wrote it, or build the dataset again")
    return Manifest.from_json(data)


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Replaces DIR/manifest.json atomically."""
    path = Path(root) / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False)
    try:
        with shards.disk_errors(path):
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def build_manifest(
    root: Path,
    name: str,
    specs: Sequence[StreamSpec],
    *,
    licences: Sequence[str] = (),
    command: str = "",
) -> Manifest:
    """Describes the shards that stand in `root` and publishes the manifest: the last step.

    Raises:
      UserError: a shard is missing or damaged, or two families differ in partition.
    """
    root = Path(root)
    remedy = f"run: {command}" if command else PIPELINE
    if schema.WORDS not in {spec.name for spec in specs}:
        raise ValueError("a dataset needs its words family")
    families = {spec.name: _scan(root, spec, remedy) for spec in specs}
    splits = _partition(families[schema.WORDS])
    for family in families.values():
        _check_partition(root, splits, family, remedy)
    manifest = Manifest(name, splits, families, tuple(licences), {}, command)
    save_manifest(root, manifest)
    return manifest


def add_family(root: Path, spec: StreamSpec, *, licences: Sequence[str] = ()) -> Manifest:
    """Adds a stream whose shards stand in DIR/<spec.name>/; no other file is rewritten.

    Raises:
      UserError: shards are missing or partitioned otherwise, or the name is taken by a stream
        with another fingerprint.
    """
    root = Path(root)
    with _locked(root):
        old = load_manifest(root)
        present = old.families.get(spec.name)
        if present is not None:
            if dataclasses.replace(present.spec, lookahead=spec.lookahead) == spec:
                return old
            raise UserError(
                f"{root} already has a family {spec.name!r} from another tokenizer "
                f"(fingerprint {present.spec.fingerprint}, not {spec.fingerprint})",
                "give the new stream a name of its own",
            )
        family = _scan(root, spec, old.remedy)
        _check_partition(root, old.splits, family, old.remedy)
        new = dataclasses.replace(
            old,
            families=dict(old.families) | {spec.name: family},
            licences=tuple(dict.fromkeys((*old.licences, *licences))),
        )
        save_manifest(root, new)
        return new


def add_tombstones(root: Path, reasons: Mapping[str, str]) -> Manifest:
    """Withdraws utterances by id -> reason; readers skip them from now on.

    Raises:
      UserError: an id is not in the dataset (nothing is changed then).
    """
    root = Path(root)
    with _locked(root):
        old = load_manifest(root)
        found = {}
        for split, counts in old.splits.items():
            index = 0
            for path, count in zip(old.files(split, schema.WORDS), counts, strict=True):
                for id, _ in shards.ShardReader(root / path, count):
                    if id in reasons:
                        found[id] = Tombstone(split, index, reasons[id])
                    index += 1
        missing = sorted(set(reasons) - set(found))
        if missing:
            raise UserError(f"{root} has no utterance {missing[0]!r}", "check the id")
        new = dataclasses.replace(old, tombstones=dict(old.tombstones) | found)
        save_manifest(root, new)
        return new


def _scan(root: Path, spec: StreamSpec, remedy: str) -> Family:
    """The shards of a family on the disk, every announced one present and readable.

    What killed writers left beside them is removed: once all shards stand, nobody needs to write.
    """
    names = {p.name: shards.parse_shard_name(p.name) for p in sorted((root / spec.name).glob("*"))}
    found = {key: name for name, key in names.items() if key is not None}
    if not found:
        raise UserError(f"{root / spec.name} has no shards", remedy)
    for split, count in {(split, count) for split, _, count in found}:
        for index in range(count):
            if (split, index, count) not in found:
                path = root / spec.name / shards.shard_name(split, index, count)
                raise UserError(f"shard {path} is missing", remedy)
    if len({(s, c) for s, _, c in found}) != len({s for s, _, _ in found}):
        raise UserError(f"{root / spec.name} mixes partitions of several runs", "delete it")
    files = {}
    for key in sorted(found):
        path = root / spec.name / found[key]
        files[f"{spec.name}/{path.name}"] = shards.describe_shard(path)
    shards.remove_temporaries(root / spec.name)
    return Family(spec, files)


def _partition(family: Family) -> dict[str, tuple[int, ...]]:
    splits: dict[str, tuple[int, ...]] = {}
    for path, info in family.files.items():  # in order of split, then of index
        split, _, _ = shards.parse_shard_name(Path(path).name)
        splits[split] = (*splits.get(split, ()), info.count)
    return splits


def _check_partition(
    root: Path, splits: Mapping[str, tuple[int, ...]], family: Family, remedy: str
) -> None:
    if _partition(family) != dict(splits):
        message = f"{root / family.spec.name} is partitioned otherwise than {root / schema.WORDS}"
        raise UserError(message, f"delete {root / family.spec.name}, then {remedy}")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time changes a manifest."""
    load_manifest(root)  # a folder that is no dataset fails with its own message
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
