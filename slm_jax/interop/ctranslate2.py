"""Reader of CTranslate2 binary models (`model.bin`, format versions 5 and 6).

Layout, little endian, as written by `ctranslate2.specs.ModelSpec` (the file has no magic number):

    u32 version, string spec name, u32 revision,
    u32 count, then per variable: string name, u8 rank, u32 shape[rank], u8 dtype, u32 bytes, data
    u32 count, then per alias: string alias, string variable name

where a string is a u16 length, that many bytes and a terminating zero counted in the length.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from slm_jax.errors import UserError

VERSIONS = (5, 6)
# The order of the DataType enumeration of CTranslate2.
DTYPES = tuple(np.dtype(name) for name in ("<f4", "<i1", "<i2", "<i4", "<f2", ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Model:
    """A CTranslate2 model.

    Attributes:
      spec: name of the architecture, e.g. "WhisperSpec".
      revision: revision of the architecture's weight names.
      weights: name -> array in the file's dtype, memory-mapped; integer weights that come with a
        `<name>_scale` are dequantized to float32, and the scales are left out. Linear weights
        are [out, in], convolutions [out, in, kernel].
    """

    spec: str
    revision: int
    weights: dict[str, np.ndarray]


class _Cursor:
    """Reads the fields of a memory-mapped file in order."""

    def __init__(self, path: Path):
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        self.data = np.memmap(path, np.uint8, mode="r")
        self.at = 0

    def take(self, count: int) -> np.ndarray:
        if self.at + count > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, {self.at + count} are needed")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")

    def array(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        code = self.number("B")
        if code >= len(DTYPES):
            raise ValueError(f"unknown dtype {code} before byte {self.at}")
        data = self.take(self.number("I"))
        return data.view(DTYPES[code]).reshape(shape)


def read(path: Path | str) -> Model:
    """Reads a CTranslate2 `model.bin`.

    Args:
      path: the file.

    Raises:
      UserError: the file is missing, truncated, or not a CTranslate2 model of a known version.
    """
    path = Path(path)
    try:
        return _read(_Cursor(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable CTranslate2 model: {error}",
            "delete it and fetch it again, or point to another model folder",
        ) from error


def _read(file: _Cursor) -> Model:
    version = file.number("I")
    if version not in VERSIONS:
        raise ValueError(f"format version {version}, known are {VERSIONS}")
    spec, revision = file.string(), file.number("I")
    weights = {}
    for _ in range(file.number("I")):
        name = file.string()
        weights[name] = file.array()
    for _ in range(file.number("I")):
        alias = file.string()
        weights[alias] = weights[file.string()]
    return Model(spec, revision, _dequantize(weights))


def _dequantize(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scales = {name for name in weights if name.endswith("_scale")}
    result = {}
    for name, array in weights.items():
        if name in scales:
            continue
        if f"{name}_scale" in scales:
            scale = np.asarray(weights[f"{name}_scale"], np.float32)
            array = array / scale.reshape(scale.shape + (1,) * (array.ndim - scale.ndim))
        result[name] = array
    return result
