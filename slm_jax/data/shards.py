"""Shards: ArrayRecord files that appear whole or not at all.

A record is `crc32 (u32) | id length (u16) | id (UTF-8) | payload`, little endian, the checksum over
all that follows it. ArrayRecord reads a missing, empty or truncated file as one of zero records
without an error; every opening here checks, and fails naming the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from slm_jax.data import schema
from slm_jax.errors import UserError

OPTIONS = "group_size:1,zstd:3"  # one record a chunk: random access costs one small read
READ_OPTIONS = "readahead_buffer_size:0"
REBUILD = "delete that file and run the data pipeline again; it rebuilds only what is missing"

_CRC = struct.Struct("<I")
_ID_LENGTH = struct.Struct("<H")
_NAME = re.compile(r"(?P<split>[a-z]+)-(?P<index>\d{5,})-of-(?P<count>\d{5,})\.arrayrecord")
_TEMPORARY = ".tmp"


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """Identity of a published shard file."""

    sha256: str
    count: int
    bytes: int


def shard_name(split: str, index: int, count: int) -> str:
    """File name of shard `index` of `count` of a split."""
    return f"{split}-{index:05d}-of-{count:05d}.arrayrecord"


def parse_shard_name(name: str) -> tuple[str, int, int] | None:
    """(split, index, count) of a shard's file name, None for any other file."""
    match = _NAME.fullmatch(name)
    return match and (match["split"], int(match["index"]), int(match["count"]))


def frame(id: str, payload: bytes) -> bytes:
    """A record: checksum, id, payload."""
    name = id.encode()
    body = _ID_LENGTH.pack(len(name)) + name + payload
    return _CRC.pack(zlib.crc32(body)) + body


def unframe(record: bytes) -> tuple[str, bytes]:
    """(id, payload) of a record.

    Raises:
      ValueError: the checksum does not fit.
    """
    start = _CRC.size + _ID_LENGTH.size
    if len(record) < start or zlib.crc32(record[_CRC.size :]) != _CRC.unpack_from(record)[0]:
        raise ValueError("checksum mismatch")
    end = start + _ID_LENGTH.unpack_from(record, _CRC.size)[0]
    return record[start:end].decode(), record[end:]


def write_shard(path: Path, items: Iterable[schema.Item]) -> ShardInfo:
    """Writes a shard and publishes it atomically; whoever publishes first wins.

    The records go to a temporary file beside `path`, which is closed, reopened, checked, hashed
    and then hard-linked to `path`. Nobody ever sees a partial shard, and a second writer of the
    same shard changes nothing.

    Returns:
      Identity of the file that stands at `path` now.
    Raises:
      UserError: the disk is full or the folder not writable; `path` and all other shards are as
        they were.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        count = _write_records(temporary, path, items)
        info = describe_shard(temporary)
        if info.count != count:
            raise UserError(
                f"only {info.count} of {count} records of {path} reached the disk", REBUILD
            )
        with disk_errors(path):
            if publish(temporary, path):
                return info
    finally:
        with contextlib.suppress(OSError):  # most often there is none any more
            temporary.unlink()
    return describe_shard(path)


def describe_shard(path: Path) -> ShardInfo:
    """Count, size and SHA-256 of a shard on the disk; UserError if it cannot be read."""
    reader = ShardReader(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardInfo(digest, len(reader), path.stat().st_size)


class ShardReader:
    """Random access to the records of one shard; safe to share between threads.

    Args:
      path: the file.
      count: number of records that the manifest promises, None to accept any.
    Raises:
      UserError: the file is missing, empty, truncated, or has another count.
    """

    def __init__(self, path: Path, count: int | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"shard {self.path} is missing", REBUILD)
        self._reader = ArrayRecordReader(str(self.path), READ_OPTIONS)
        if not self._reader.ok():
            raise UserError(f"shard {self.path} is truncated or is no ArrayRecord file", REBUILD)
        self._count = self._reader.num_records()
        if count is not None and self._count != count:
            message = f"shard {self.path} has {self._count} records, its manifest says {count}"
            raise UserError(message, REBUILD)

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> tuple[str, bytes]:
        """(id, payload) of record `index`; UserError naming file and index if it is corrupt."""
        try:
            # read([index]) would cost time proportional to the length of the file.
            return unframe(self._reader.read(index, index + 1)[0])
        except (RuntimeError, ValueError) as error:
            raise corrupt_record(self.path, index, str(error)) from error

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return (self.read(i) for i in range(self._count))


def corrupt_record(path: Path, index: int, why: str) -> UserError:
    """The error for a record that is not what was written."""
    return UserError(f"shard {path}: record {index} is corrupt ({why})", REBUILD)


def remove_temporaries(folder: Path) -> None:
    """Deletes what killed writers left in `folder`; a writer still at work there would fail."""
    for path in Path(folder).glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> bool:
    """Gives a finished file its name unless the name is taken; True if it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # No hard links on this file system. Writers of one shard produce the same bytes, so that
        # the race between this test and the rename is harmless.
        if path.exists():
            return False
        os.rename(temporary, path)
    return True


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns failures to write `path` into a UserError (ArrayRecord reports RuntimeError)."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            text in str(error) for text in ("No space left on device", "Disk quota exceeded")
        )
        if full:
            remedy = "free space and run the same command again; what is complete is kept"
            raise UserError(f"the disk is full: cannot write {path}", remedy) from error
        remedy = "check the folder and its permissions, then run the same command again"
        raise UserError(f"cannot write {path}: {error}", remedy) from error


def _write_records(temporary: Path, path: Path, items: Iterable[schema.Item]) -> int:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(temporary), OPTIONS)
    count = 0
    try:
        for item in items:
            record = frame(item.id, schema.encode(item))
            with disk_errors(path):
                writer.write(record)
            count += 1
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first failure is the one to report
            writer.close()
        raise
    with disk_errors(path):
        writer.close()
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
    return count
