"""The safetensors format, memory-mapped: a file is 8 bytes of header length, a JSON header
{name: {dtype, shape, data_offsets}}, and the arrays one after another
(https://huggingface.co/docs/safetensors).

The `safetensors` package returns no bfloat16 to numpy and needs all arrays at once to write; here
arrays are views of the file, and are written one by one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from slm_jax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where an array stands: absolute byte offset, dtype, shape."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """Names, dtypes and shapes, without reading the arrays.

    Raises:
      UserError: the file is missing, truncated, or not safetensors.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"its header says {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
        entries = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            entries[name] = Entry(8 + length + begin, dtype, shape)
            if entries[name].nbytes != end - begin or 8 + length + end > size:
                raise ValueError(f"the array {name} does not fit into its {size} bytes")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "download the checkpoint again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file: {error}", "download it again"
        ) from None
    return entries


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file as read-only views of it; bytes are read when they are used."""
    entries = read_header(path)
    if not any(entry.nbytes for entry in entries.values()):
        return {name: np.zeros(entry.shape, entry.dtype) for name, entry in entries.items()}
    data = np.memmap(path, np.uint8, "r")
    return {
        name: np.ndarray(entry.shape, entry.dtype, data, entry.offset)
        for name, entry in entries.items()
    }


def write(
    path: Path,
    entries: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays one at a time; the file appears under its name only when it is whole.

    Args:
      path: where to; a file there is replaced.
      entries: name -> (dtype, shape), in the order of `arrays`.
      arrays: may be a generator, so that no two need to be in memory at once.
      metadata: strings for the header's `__metadata__`.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays start aligned, as the format asks
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for (name, (dtype, shape)), array in zip(entries.items(), arrays, strict=True):
                if array.dtype != dtype or array.shape != shape:
                    raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{shape}")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
