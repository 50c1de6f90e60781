"""What one utterance is, and how each of its parts becomes bytes.

A dataset keeps the parts of an utterance in *families*: "words" (the transcript on the time axis),
"audio" (FLAC), and one family a stream ("text-smollm2", "taste", "speaker", ...). No part knows of
delays, padding or the order of columns; those belong to layouts.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any, TypeAlias

import numpy as np

from slm_jax.streams import WORD, StreamSpec

WORDS = "words"
AUDIO = "audio"
AUDIO_RATE = 16_000

_HEADER = struct.Struct("<BBII")  # dtype, has index, items, width
_DTYPES = (np.uint8, np.uint16, np.int32, np.float32)  # a dtype's place here is its code on disk


@dataclasses.dataclass(frozen=True)
class Word:
    """One word as its segmenter cut it; times in seconds from the start of the utterance."""

    text: str
    start: float
    end: float
    confidence: float = 1.0
    turn: int = 0
    role: str = "speaker"
    channel: int = 0


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A transcript on the time axis. Text without audio has `duration` 0 and words at 0.

    Attributes:
      id: unique in its dataset; the same in every family.
      words: in order of start.
      language: BCP 47 code, "en".
      speaker: name of the speaker in the source corpus, "" when unknown.
      duration: seconds.
      source: corpus and file, for people.
      text: the transcript as written, punctuation included.
    """

    id: str
    words: tuple[Word, ...]
    language: str
    speaker: str
    duration: float
    source: str
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class StreamItem:
    """One stream of one utterance.

    Attributes:
      id: the utterance's.
      values: int32 [n, levels] codes, level 0 coarse, or float32 [n, width] vectors.
      index: int32 [n], the word that each item belongs to, where a word has other than one item
        (text ids); None where item i is on tick i of the stream's clock.
    """

    id: str
    values: np.ndarray
    index: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class AudioItem:
    """Mono audio of one utterance at 16 kHz, as a FLAC file."""

    id: str
    flac: bytes


Item: TypeAlias = Utterance | StreamItem | AudioItem
Record: TypeAlias = dict[str, Item]  # family -> item, all of one id: a joined record


def words_spec(fingerprint: str = "") -> StreamSpec:
    """The spec of the "words" family; the fingerprint is that of the ASR or aligner."""
    return StreamSpec(WORDS, "words", WORD, fingerprint=fingerprint)


def audio_spec() -> StreamSpec:
    """The spec of the "audio" family."""
    return StreamSpec(AUDIO, "audio", float(AUDIO_RATE), fingerprint="flac-16k-mono")


def encode(item: Item) -> bytes:
    """The payload of an item (its id travels in the frame). Equal items give equal bytes."""
    if isinstance(item, Utterance):
        return _encode_utterance(item)
    if isinstance(item, StreamItem):
        return _encode_stream(item)
    return item.flac


def decode(kind: str, id: str, payload: bytes) -> Item:
    """Inverse of `encode`; `kind` is the `StreamSpec.kind` of the family.

    Raises:
      ValueError: the payload is not of that kind.
    """
    if kind == "words":
        return _decode_utterance(id, payload)
    if kind == "audio":
        return AudioItem(id, payload)
    return _decode_stream(id, payload)


def _encode_utterance(item: Utterance) -> bytes:
    data: dict[str, Any] = {
        f.name: getattr(item, f.name)
        for f in dataclasses.fields(item)
        if f.name not in ("id", "words")
    }
    columns = {}
    for f in dataclasses.fields(Word):
        column = [getattr(w, f.name) for w in item.words]
        if f.default is dataclasses.MISSING or any(v != f.default for v in column):
            columns[f.name] = column
    data["words"] = columns
    text = json.dumps(
        data,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=lambda number: number.item(),  # times often come as NumPy scalars
    )
    return text.encode()


def _decode_utterance(id: str, payload: bytes) -> Utterance:
    data = json.loads(payload)
    columns = data.pop("words")
    words = tuple(
        Word(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    )
    return Utterance(id=id, words=words, **data)


def _encode_stream(item: StreamItem) -> bytes:
    values = np.asarray(item.values)
    if values.ndim != 2:
        raise ValueError(f"stream of {item.id!r}: values must be [n, levels], got {values.shape}")
    if values.dtype.kind == "f":
        dtype = 3
    elif values.size and (values.min() < 0 or values.max() > 0xFFFF):
        dtype = 2
    else:
        dtype = int(values.size and values.max() > 0xFF)
    header = _HEADER.pack(dtype, item.index is not None, *values.shape)
    stored = np.ascontiguousarray(values, np.dtype(_DTYPES[dtype]).newbyteorder("<"))
    if item.index is None:
        return header + stored.tobytes()
    index = np.ascontiguousarray(item.index, "<i4")
    if index.shape != values.shape[:1]:
        raise ValueError(f"stream of {item.id!r}: {values.shape[0]} values, index {index.shape}")
    return header + stored.tobytes() + index.tobytes()


def _decode_stream(id: str, payload: bytes) -> StreamItem:
    if len(payload) < _HEADER.size:
        raise ValueError("stream payload shorter than its header")
    dtype, indexed, n, width = _HEADER.unpack_from(payload)
    if dtype >= len(_DTYPES):
        raise ValueError(f"unknown stream dtype {dtype}")
    kind = np.dtype(_DTYPES[dtype]).newbyteorder("<")
    split = _HEADER.size + n * width * kind.itemsize
    if len(payload) != split + 4 * n * indexed:
        raise ValueError(f"stream payload has {len(payload)} bytes for {n} x {width} values")
    values = np.frombuffer(payload, kind, n * width, _HEADER.size).reshape(n, width)
    values = values.astype(np.float32 if dtype == 3 else np.int32)
    index = np.frombuffer(payload, "<i4", n, split).astype(np.int32) if indexed else None
    return StreamItem(id, values, index)
