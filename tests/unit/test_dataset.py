import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.data import schema, shards
from slm_jax.data.dataset import open_dataset, write_dataset
from slm_jax.data.schema import AudioItem, StreamItem, Utterance, Word
from slm_jax.errors import UserError
from slm_jax.streams import StreamSpec

SPECS = [
    schema.words_spec("asr"),
    schema.audio_spec(),
    StreamSpec("taste", "codes", "word", (64,) * 2),
    StreamSpec("speaker", "continuous", "utterance", width=3),
]
FAMILIES = [spec.name for spec in SPECS]


def record(i, id=None):
    rng = np.random.default_rng(i)
    id = f"u{i}" if id is None else id
    words = tuple(Word(f"w{j}", j, j + 0.5) for j in range(i % 4))
    return {
        "words": Utterance(id, words, "en", "s", len(words), "toy", "text"),
        "audio": AudioItem(id, rng.bytes(100)),
        "taste": StreamItem(id, rng.integers(0, 64, (len(words), 2)).astype(np.int32)),
        "speaker": StreamItem(id, rng.normal(size=(1, 3)).astype(np.float32)),
    }


def same(one, other):
    return (
        one["words"] == other["words"]
        and one["audio"] == other["audio"]
        and np.array_equal(one["taste"].values, other["taste"].values)
        and np.array_equal(one["speaker"].values, other["speaker"].values)
    )


@pytest.fixture
def root(tmp_path):
    records = [record(i) for i in range(25)]
    write_dataset(tmp_path, "toy", SPECS, {"train": records}, command="python -m rebuild",
                  records_per_shard=10)  # fmt: skip
    return tmp_path


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5))
def test_any_partition_reads_back(tmp_path_factory, count, records_per_shard):
    records = [record(i) for i in range(count)]
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, "toy", SPECS, {"test": records}, records_per_shard=records_per_shard)
    split = open_dataset(root).split("test", FAMILIES)
    assert len(split) == count
    assert all(same(a, b) for a, b in zip(split, records, strict=True))


def test_random_access(root):
    train = open_dataset(root).split("train", FAMILIES)
    for i in (24, 0, 9, 10, 13):
        assert same(train[i], record(i))
    assert same(train[-1], record(24))
    assert set(open_dataset(root).split("train")[3]) == {"words"}
    with pytest.raises(IndexError):
        train[25]


def test_unknown_names(root):
    with pytest.raises(UserError, match="no split 'valid', only train"):
        open_dataset(root).split("valid")
    with pytest.raises(UserError, match="no family 'mimi', only audio, speaker") as error:
        open_dataset(root).split("train", ["words", "mimi"])
    assert "python -m rebuild" in error.value.remedy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 0), "is truncated"),
        (lambda path: os.truncate(path, 100_000), "is truncated"),
        (lambda path: (path.unlink(), shards.write_shard(path, [])), "0 records, its manifest"),
    ],
)
def test_damage_is_found_at_open(root, damage, message):
    path = root / "taste" / shards.shard_name("train", 2, 3)
    damage(path)
    dataset = open_dataset(root)
    dataset.split("train", ["words", "audio"])  # untouched by the damage
    with pytest.raises(UserError, match=rf"{path}.*{message}"):
        dataset.split("train", ["words", "taste"])


def test_another_file_of_the_same_count_is_found(root):
    path = root / "audio" / shards.shard_name("train", 2, 3)
    path.unlink()
    shards.write_shard(path, [AudioItem(f"u{i}", os.urandom(100_000)) for i in range(5)])
    with pytest.raises(UserError, match=f"{path} has .* bytes, not"):
        open_dataset(root).split("train", ["audio"])


def test_a_record_of_another_utterance_is_named(root):
    path = root / "taste" / shards.shard_name("train", 1, 3)
    path.unlink()
    shards.write_shard(
        path, [record(10 + i, f"x{i}" if i == 4 else None)["taste"] for i in range(10)]
    )
    train = open_dataset(root).split("train", ["words", "taste"])
    assert same(train[13] | record(13), record(13))
    with pytest.raises(UserError, match=f"{path}: record 4 is corrupt .*'x4'.*'u14'"):
        train[14]


def test_a_payload_of_another_kind_is_named(root):
    path = root / "taste" / shards.shard_name("train", 0, 3)
    path.unlink()
    shards.write_shard(path, [record(i)["audio"] for i in range(10)])
    with pytest.raises(UserError, match=f"{path}: record 0 is corrupt .*not of its kind"):
        open_dataset(root).split("train", ["words", "taste"])[0]


def test_verify_finds_what_opening_does_not(root):
    open_dataset(root).verify()
    path = root / "audio" / shards.shard_name("train", 0, 3)
    clean = path.read_bytes()
    for place, message in ((700, "record . is corrupt"), (120_000, "not the one written")):
        data = bytearray(clean)
        data[place] ^= 1
        path.write_bytes(data)
        open_dataset(root).split("train", FAMILIES)
        with pytest.raises(UserError, match=f"{path}.*{message}"):
            open_dataset(root).verify()


def test_fingerprint_is_of_the_content(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    records = [record(i) for i in range(25)]
    write_dataset(copy, "other name", SPECS, {"train": records}, records_per_shard=10)
    one, other = open_dataset(root), open_dataset(copy)
    taste = one.split("train", ["words", "taste"]).fingerprint
    assert taste == other.split("train", ["taste", "words"]).fingerprint
    assert taste != one.split("train", ["words", "audio"]).fingerprint


def test_threads_share_a_split(root):
    train = open_dataset(root).split("train", FAMILIES)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 25, 200).tolist():
            if not same(train[i], record(i)):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_an_interrupted_write_continues(root):
    (root / "manifest.json").unlink()
    (root / "taste" / shards.shard_name("train", 1, 3)).unlink()
    kept = {p: p.stat().st_mtime_ns for p in root.rglob("*.arrayrecord")}
    records = [record(i) for i in range(25)]
    train = write_dataset(root, "toy", SPECS, {"train": records}, records_per_shard=10).split(
        "train", FAMILIES
    )
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert all(same(a, b) for a, b in zip(train, records, strict=True))
