"""The GGUF format: metadata and (quantised) tensors in one file
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Only the container is read here, because the `gguf` package needs seconds for a vocabulary; that
package turns the quantised blocks into numbers.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from slm_jax.errors import UserError

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9


class Tensor(NamedTuple):
    """A tensor as it lies in the file: bytes of blocks, rows first."""

    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    blocks: np.ndarray

    def dequantize(self) -> np.ndarray:
        """f32 array of `shape`."""
        wide = gguf.dequantize(self.blocks, self.type)
        return np.asarray(wide, np.float32).reshape(self.shape)


class GGUF(NamedTuple):
    """A file: metadata as Python values (numeric arrays as numpy), tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: Path) -> GGUF:
    """Reads the metadata and maps the tensors; their bytes are read when they are used.

    Raises:
      UserError: the file is missing, truncated, not GGUF, or one part of several.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        result = _Cursor(data).file()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "give the path of a .gguf file") from None
    except (ValueError, KeyError, struct.error) as error:
        raise UserError(
            f"{path} is truncated or not a GGUF file: {error}", "download it again"
        ) from None
    if result.metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one of {result.metadata['split.count']} parts",
            "join them first, with `llama-gguf-split --merge`",
        )
    return result


class _Cursor:
    """Walks through a little-endian file of version 2 or 3."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, within its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in (STRING, ARRAY):
            return [self.value(kind) for _ in range(count)]
        dtype = np.dtype("<" + SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def file(self) -> GGUF:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not start with 'GGUF'")
        version, tensors, fields = self.scalar("I"), self.scalar("Q"), self.scalar("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}, known are 2 and 3")
        metadata = {self.string(): self.value(self.scalar("I")) for _ in range(fields)}
        infos = [self.tensor_info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        start = -(-self.at // alignment) * alignment
        return GGUF(metadata, {name: self.tensor(start, name, *info) for name, *info in infos})

    def tensor_info(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        name = self.string()
        shape = tuple(self.scalar("Q") for _ in range(self.scalar("I")))[::-1]  # fastest first
        return name, shape, gguf.GGMLQuantizationType(self.scalar("I")), self.scalar("Q")

    def tensor(
        self,
        start: int,
        name: str,
        shape: tuple[int, ...],
        kind: gguf.GGMLQuantizationType,
        offset: int,
    ) -> Tensor:
        stored = gguf.quant_shape_to_byte_shape(shape, kind)
        nbytes = int(np.prod(stored))
        if start + offset + nbytes > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, within the tensor {name}")
        blocks = np.frombuffer(self.data, np.uint8, nbytes, start + offset).reshape(stored)
        native = {
            gguf.GGMLQuantizationType.F32: np.float32,
            gguf.GGMLQuantizationType.F16: np.float16,
        }
        return Tensor(shape, kind, blocks.view(native[kind]) if kind in native else blocks)
