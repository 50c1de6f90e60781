import hashlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.data import shards
from slm_jax.data.schema import AudioItem, StreamItem
from slm_jax.errors import UserError


def items(count, seed=0):
    rng = np.random.default_rng(seed)
    return [StreamItem(f"u{i}", rng.integers(0, 512, (20, 4))) for i in range(count)]


def write(path, count=50, seed=0):
    return shards.write_shard(path, items(count, seed))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=20), st.binary(max_size=50))
def test_frame_round_trip(id, payload):
    assert shards.unframe(shards.frame(id, payload)) == (id, payload)


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=20), st.binary(max_size=50), st.data())
def test_any_flipped_bit_is_noticed(id, payload, data):
    record = bytearray(shards.frame(id, payload))
    place = data.draw(st.integers(0, len(record) * 8 - 1))
    record[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match="checksum"):
        shards.unframe(bytes(record))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_shard_round_trip(tmp_path_factory, payloads):
    path = tmp_path_factory.mktemp("shard") / shards.shard_name("train", 0, 1)
    info = shards.write_shard(path, (AudioItem(str(i), p) for i, p in enumerate(payloads)))
    assert info.count == len(payloads)
    assert list(shards.ShardReader(path, info.count)) == [
        (str(i), p) for i, p in enumerate(payloads)
    ]


def test_names():
    assert shards.shard_name("train", 3, 12) == "train-00003-of-00012.arrayrecord"
    assert shards.parse_shard_name("train-00003-of-00012.arrayrecord") == ("train", 3, 12)
    assert shards.parse_shard_name(".train-00003-of-00012.arrayrecord.1f.tmp") is None


def test_bytes_are_deterministic_and_described(tmp_path):
    one, two = write(tmp_path / "a"), write(tmp_path / "b")
    assert one == two == shards.describe_shard(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    assert (one.sha256, one.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_the_first_writer_wins(tmp_path):
    first = write(tmp_path / "a", seed=0)
    second = write(tmp_path / "a", count=7, seed=1)
    assert second == first
    assert os.listdir(tmp_path) == ["a"]


def test_writers_racing_for_a_name_agree(tmp_path):
    infos = []
    threads = [
        threading.Thread(target=lambda seed=s: infos.append(write(tmp_path / "a", seed=seed)))
        for s in range(4)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(infos)) == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refused(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = write(tmp_path / "a", seed=0)
    assert write(tmp_path / "a", seed=1) == first
    assert os.listdir(tmp_path) == ["a"]


def test_a_failing_source_publishes_nothing(tmp_path):
    def source():
        yield from items(3)
        raise RuntimeError("tokenizer failed")

    with pytest.raises(RuntimeError, match="tokenizer failed"):
        shards.write_shard(tmp_path / "a", source())
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_shard(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from slm_jax.data import shards
from slm_jax.data.schema import AudioItem
def source():
    for i in range(100):
        yield AudioItem(str(i), os.urandom(100_000))
    os.kill(os.getpid(), signal.SIGKILL)
shards.write_shard(Path(sys.argv[1]), source())
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")])
    assert run.returncode == -9
    assert not (tmp_path / "a").exists()
    assert len(os.listdir(tmp_path)) == 1
    shards.remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path):
    write(tmp_path / "before")
    noise = (AudioItem(str(i), os.urandom(1 << 20)) for i in range(3))
    with pytest.raises(UserError, match=r"disk is full.*after") as error:
        shards._write_records("/dev/full", tmp_path / "after", noise)
    assert "free space" in error.value.remedy
    assert os.listdir(tmp_path) == ["before"]
    assert len(shards.ShardReader(tmp_path / "before", 50)) == 50


def test_a_file_too_large_for_the_system_publishes_nothing(tmp_path):
    code = """
import os, resource, signal, sys
from pathlib import Path
from slm_jax.data import shards
from slm_jax.data.schema import AudioItem
from slm_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    shards.write_shard(Path(sys.argv[1]), (AudioItem(str(i), os.urandom(99_999)) for i in range(9)))
except UserError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert f"cannot write {tmp_path / 'a'}" in run.stdout, run.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "a")


@pytest.mark.parametrize("size", [0, 100, 70_000])
def test_a_truncated_shard_is_named(tmp_path, size):
    write(tmp_path / "a")
    os.truncate(tmp_path / "a", size)
    with pytest.raises(UserError, match=rf"{tmp_path / 'a'} is truncated") as error:
        shards.ShardReader(tmp_path / "a")
    assert "pipeline" in error.value.remedy


def test_missing_foreign_and_miscounted_shards(tmp_path):
    with pytest.raises(UserError, match="a is missing"):
        shards.ShardReader(tmp_path / "a")
    (tmp_path / "b").write_text("RIFF" * 50_000)
    with pytest.raises(UserError, match="b is truncated or is no ArrayRecord"):
        shards.ShardReader(tmp_path / "b")
    write(tmp_path / "c")
    with pytest.raises(UserError, match="50 records, its manifest says 51"):
        shards.ShardReader(tmp_path / "c", 51)


def test_a_flipped_byte_is_found_with_its_index(tmp_path):
    path = tmp_path / "a"
    write(path)
    clean = path.read_bytes()
    damaged = set()
    for place in range(300, 6_000, 97):  # the records follow ArrayRecord's header
        data = bytearray(clean)
        data[place] ^= 0x10
        path.write_bytes(data)
        reader = shards.ShardReader(path, 50)
        for index in range(50):
            try:
                assert reader.read(index)[0] == f"u{index}"
            except UserError as error:
                assert f"{path}: record {index} is corrupt" in str(error)
                damaged.add(index)
    assert len(damaged) > 20


def test_a_reader_serves_many_threads(tmp_path):
    write(tmp_path / "a", 500)
    reader = shards.ShardReader(tmp_path / "a")
    wanted = dict(enumerate(reader))
    wrong = []

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, 500, 500).tolist():
            if reader.read(index) != wanted[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
