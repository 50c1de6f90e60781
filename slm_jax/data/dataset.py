"""Reading datasets: families joined by index, checked at open."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from slm_jax.data import manifest as manifests
from slm_jax.data import schema, shards
from slm_jax.data.manifest import PIPELINE, Manifest
from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec

_OPEN_SHARDS = 256  # a reader holds a file descriptor


class Dataset:
    """A complete dataset on disk; get one from `open_dataset`."""

    def __init__(self, root: Path, manifest: Manifest):
        self.root = root
        self.manifest = manifest

    @property
    def specs(self) -> dict[str, StreamSpec]:
        """Family name -> what its stream is."""
        return {name: family.spec for name, family in self.manifest.families.items()}

    def split(self, split: str, families: Sequence[str] = (schema.WORDS,)) -> Split:
        """The records of a split, joined over `families`; each of their files is checked now.

        Raises:
          UserError: no such split or family, or a file is missing, truncated or of another size.
        """
        for what, name, known in [
            ("split", split, self.manifest.splits),
            *(("family", family, self.manifest.families) for family in families),
        ]:
            if name not in known:
                message = f"{self.root} has no {what} {name!r}, only {', '.join(sorted(known))}"
                raise UserError(message, self.manifest.remedy)
        return Split(self, split, tuple(families))

    def verify(self) -> None:
        """Hashes every file and reads every record; UserError at the first damage.

        Damage inside one record is reported with its index, any other with the file.
        """
        for name, family in self.manifest.families.items():
            for path, info in family.files.items():
                if shards.describe_shard(self.root / path) == info:
                    continue
                for id, payload in shards.ShardReader(self.root / path, info.count):
                    schema.decode(family.spec.kind, id, payload)
                message = f"shard {self.root / path} of family {name!r} is not the one written"
                raise UserError(message, shards.REBUILD)


class Split:
    """The records of one split: `split[i]` is a dict family -> item, in the manifest's order.

    Tombstoned utterances are left out. Safe to share between threads.

    Attributes:
      name, families, root: as asked for.
      fingerprint: digest of the content of these families.
    """

    def __init__(self, dataset: Dataset, name: str, families: tuple[str, ...]):
        manifest = dataset.manifest
        self.name = name
        self.families = families
        self.root = dataset.root
        self.specs = {f: dataset.specs[f] for f in families}
        self.fingerprint = manifest.fingerprint(name, families)
        self._ends = list(itertools.accumulate(manifest.splits[name]))
        self._dead = sorted(t.index for t in manifest.tombstones.values() if t.split == name)
        self._shards = {f: [self.root / p for p in manifest.files(name, f)] for f in families}
        self._counts = manifest.splits[name]
        self._reader = functools.lru_cache(_OPEN_SHARDS)(self._open)
        for family, paths in self._shards.items():
            for shard, path in enumerate(paths):
                info = manifest.families[family].files[f"{family}/{path.name}"]
                self._reader(family, shard)
                if path.stat().st_size != info.bytes:
                    message = f"shard {path} has {path.stat().st_size} bytes, not {info.bytes}"
                    raise UserError(message, shards.REBUILD)

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) - len(self._dead)

    def __getitem__(self, index: int) -> schema.Record:
        """The joined record; IndexError outside, UserError if a file is damaged or misjoined."""
        shard, row = self._place(index)
        record: schema.Record = {}
        first = None
        for family in self.families:
            id, payload = self._reader(family, shard).read(row)
            first = first or id
            path = self._shards[family][shard]
            if id != first:
                why = f"it is of {id!r}, the {self.families[0]!r} family has {first!r} there"
                raise shards.corrupt_record(path, row, why)
            try:
                record[family] = schema.decode(self.specs[family].kind, id, payload)
            except (ValueError, KeyError, TypeError) as error:
                raise shards.corrupt_record(path, row, f"not of its kind: {error}") from error
        return record

    def __iter__(self) -> Iterator[schema.Record]:
        return (self[i] for i in range(len(self)))

    def where(self, index: int) -> str:
        """The files that hold a record, for messages."""
        shard, row = self._place(index)
        family = self.families[0]
        if len(self.families) > 1:
            family = "{" + ",".join(self.families) + "}"
        name = self._shards[self.families[0]][shard].name
        return f"record {row} of {self.root / family / name}"

    def _place(self, index: int) -> tuple[int, int]:
        """(shard, row in it) of a record."""
        place = range(len(self))[index]
        for dead in self._dead:  # places count the living, files hold all
            place += dead <= place
        shard = bisect.bisect_right(self._ends, place)
        return shard, place - (self._ends[shard] - self._counts[shard])

    def _open(self, family: str, shard: int) -> shards.ShardReader:
        return shards.ShardReader(self._shards[family][shard], self._counts[shard])


def open_dataset(root: str | Path, remedy: str = PIPELINE) -> Dataset:
    """Opens the dataset at `root`.

    Args:
      root: folder with manifest.json.
      remedy: what to tell the user if there is none, e.g. the command that builds it.
    Raises:
      UserError: there is no complete dataset at `root`.
    """
    root = Path(root).expanduser()
    return Dataset(root, manifests.load_manifest(root, remedy))


def write_dataset(
    root: str | Path,
    name: str,
    specs: Sequence[StreamSpec],
    splits: Mapping[str, Sequence[schema.Record]],
    *,
    licences: Sequence[str] = (),
    command: str = "",
    records_per_shard: int = 10_000,
) -> Dataset:
    """Writes joined records that fit in memory as a whole dataset, shards that exist excepted.

    Large corpora go shard by shard through `shards.write_shard` and `manifest.build_manifest`.
    """
    root = Path(root).expanduser()
    for split, records in splits.items():
        count = max(1, -(-len(records) // records_per_shard))
        for shard in range(count):
            part = records[shard * records_per_shard :][:records_per_shard]
            for spec in specs:
                path = root / spec.name / shards.shard_name(split, shard, count)
                shards.write_shard(path, (record[spec.name] for record in part))
    manifests.build_manifest(root, name, specs, licences=licences, command=command)
    return open_dataset(root)
