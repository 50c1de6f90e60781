import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.data import manifest as manifests
from slm_jax.data import schema, shards
from slm_jax.data.dataset import open_dataset, write_dataset
from slm_jax.data.manifest import Family, Manifest, Tombstone, add_family, add_tombstones
from slm_jax.data.schema import StreamItem, Utterance, Word
from slm_jax.data.shards import ShardInfo
from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec

TASTE = StreamSpec("taste", "codes", "word", (64,) * 4, fingerprint="starter")
COMMAND = "python -m data_pipelines.build toy"


def records(count, prefix="u"):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        words = tuple(Word(f"w{j}", j, j + 0.5) for j in range(1 + i % 5))
        utterance = Utterance(f"{prefix}{i}", words, "en", "s", len(words), "toy", "")
        codes = StreamItem(utterance.id, rng.integers(0, 64, (len(words), 4)))
        made.append({"words": utterance, "taste": codes})
    return made


@pytest.fixture
def root(tmp_path):
    splits = {"train": records(25), "test": records(3, "t"), "validation": []}
    write_dataset(tmp_path, "toy", [schema.words_spec()], splits, command=COMMAND,
                  licences=["CC0-1.0"], records_per_shard=10)  # fmt: skip
    return tmp_path


def write_taste(root, items=None, counts=(10, 10, 5)):
    items = iter([r["taste"] for r in records(25)] if items is None else items)
    for i, count in enumerate(counts):
        path = root / "taste" / shards.shard_name("train", i, len(counts))
        shards.write_shard(path, [next(items) for _ in range(count)])
    for split, made in (("test", records(3, "t")), ("validation", [])):
        path = root / "taste" / shards.shard_name(split, 0, 1)
        shards.write_shard(path, [r["taste"] for r in made])


names = st.text("abcxyz-0", min_size=1, max_size=6)
infos = st.builds(ShardInfo, st.text("0af", max_size=4), st.integers(0, 9), st.integers(0, 9))
specs = st.builds(StreamSpec, names, st.sampled_from(["codes", "words"]), st.just("word"),
                  st.tuples(st.integers(1, 9)), fingerprint=names)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        Manifest,
        name=st.text(max_size=5),
        splits=st.dictionaries(names, st.lists(st.integers(0, 9)).map(tuple), max_size=3),
        families=st.dictionaries(
            names, st.builds(Family, specs, st.dictionaries(names, infos)), max_size=3
        ),
        licences=st.lists(st.text(max_size=5)).map(tuple),
        tombstones=st.dictionaries(names, st.builds(Tombstone, names, st.integers(0, 9), names)),
        command=st.text(max_size=5),
    )
)
def test_round_trip(manifest):
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_build_lists_everything(root):
    manifest = manifests.load_manifest(root)
    assert manifest.splits == {"train": (10, 10, 5), "test": (3,), "validation": (0,)}
    assert manifest.licences == ("CC0-1.0",)
    for path, info in manifest.families["words"].files.items():
        assert shards.describe_shard(root / path) == info


def test_add_family_rewrites_nothing(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.arrayrecord")}
    write_taste(root)
    left = root / "taste" / f".{shards.shard_name('train', 0, 3)}.0f.tmp"
    left.write_text("of a killed writer")
    manifest = add_family(root, TASTE, licences=["MIT", "CC0-1.0"])
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not left.exists()
    assert manifest == manifests.load_manifest(root)
    assert manifest.families["taste"].spec == TASTE
    assert manifest.licences == ("CC0-1.0", "MIT")
    assert add_family(root, TASTE) == manifest
    train = open_dataset(root).split("train", ["words", "taste"])
    assert [len(r["taste"].values) for r in train] == [len(r["words"].words) for r in train]


def test_add_family_refuses_another_tokenizer_under_the_same_name(root):
    write_taste(root)
    add_family(root, TASTE)
    other = StreamSpec("taste", "codes", "word", (64,) * 4, fingerprint="better")
    with pytest.raises(UserError, match=r"from another tokenizer.*starter, not better"):
        add_family(root, other)


def test_what_a_tokenizer_says_of_its_lookahead_makes_no_other_stream(root):
    write_taste(root)
    manifest = add_family(root, TASTE)
    assert add_family(root, dataclasses.replace(TASTE, lookahead=TASTE.lookahead + 28)) == manifest


def test_add_family_refuses_another_partition(root):
    write_taste(root, counts=(20, 5))
    with pytest.raises(UserError, match="taste is partitioned otherwise") as error:
        add_family(root, TASTE)
    assert COMMAND in error.value.remedy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 0), "is truncated"),
        (lambda path: os.truncate(path, 70_000), "is truncated"),
    ],
)
def test_add_family_needs_every_shard(root, damage, message):
    write_taste(root)
    path = root / "taste" / shards.shard_name("train", 1, 3)
    damage(path)
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=f"{path} {message}"):
        add_family(root, TASTE)
    assert (root / "manifest.json").read_bytes() == before


def test_leftovers_of_another_partition_are_named(root):
    shutil.copy(
        root / "words" / shards.shard_name("test", 0, 1),
        root / "words" / shards.shard_name("train", 0, 1),
    )
    with pytest.raises(UserError, match="mixes partitions"):
        manifests.build_manifest(root, "toy", [schema.words_spec()])


def test_an_unfinished_dataset_is_named_with_its_command(tmp_path):
    with pytest.raises(UserError, match="not a complete dataset") as error:
        manifests.load_manifest(tmp_path / "nowhere", f"run: {COMMAND}")
    assert COMMAND in error.value.remedy
    with pytest.raises(UserError, match="words has no shards") as error:
        manifests.build_manifest(tmp_path, "toy", [schema.words_spec()], command=COMMAND)
    assert COMMAND in error.value.remedy
    assert not (tmp_path / "manifest.json").exists()


def test_damaged_and_newer_manifests(root):
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text[:100])
    with pytest.raises(UserError, match="is damaged"):
        manifests.load_manifest(root)
    (root / "manifest.json").write_text(text.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(UserError, match="schema version 9"):
        manifests.load_manifest(root)


def test_tombstones_hide_utterances_everywhere(root):
    write_taste(root)
    add_family(root, TASTE)
    whole = open_dataset(root).split("train", ["words", "taste"])
    add_tombstones(root, {"u0": "withdrawn", "u11": "wrong transcript", "t2": "withdrawn"})
    manifest = add_tombstones(root, {"u24": "withdrawn"})
    assert manifest.tombstones["u11"] == Tombstone("train", 11, "wrong transcript")
    train = open_dataset(root).split("train", ["words", "taste"])
    kept = [i for i in range(25) if i not in (0, 11, 24)]
    assert [r["words"].id for r in train] == [f"u{i}" for i in kept]
    for i, record in zip(kept, train, strict=True):
        np.testing.assert_array_equal(record["taste"].values, whole[i]["taste"].values)
    assert len(open_dataset(root).split("test")) == 2
    assert train.fingerprint != whole.fingerprint


def test_a_tombstone_for_nobody_changes_nothing(root):
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="no utterance 'u99'"):
        add_tombstones(root, {"u1": "withdrawn", "u99": "withdrawn"})
    assert (root / "manifest.json").read_bytes() == before
