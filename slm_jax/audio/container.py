"""What an audio file says about itself, read from its bytes without a decoder.

Decoders accept a file cut in half without a word (libsndfile and FFmpeg do so for WAV, MP3 and
Ogg), so the container's own statements are compared with what was found.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import PurePath

WAVE_PCM = 1
_WAVE_EXTENSIBLE = 0xFFFE
_STREAMED = 0x7FFF_0000  # writers to a pipe declare 2 or 4 GiB since they cannot seek back
_OGG_END_OF_STREAM = 4


def kind(data: bytes, name: str = "") -> str:
    """ "wav", "flac", "opus" (in Ogg), "ogg", "mp3", "g722" or "other".

    By content, except for raw G.722, which has no header and goes by the file name.
    """
    head = data[:4]
    if head in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    if head == b"fLaC":
        return "flac"
    if head == b"OggS":
        return "opus" if b"OpusHead" in data[:64] else "ogg"
    if PurePath(name).suffix.lower() == ".g722":
        return "g722"
    start = _id3_size(data)
    if data[start : start + 4] == b"fLaC":
        return "flac"
    return "mp3" if _mp3_frame(data[start : start + 4]) else "other"


def missing_bytes(data: bytes) -> str | None:
    """Says how a WAV or Ogg file is cut short; None if it is whole, or of another format."""
    match kind(data):
        case "wav":
            declared, present = wave_header(data).data_bytes, wave_header(data).present_bytes
            if declared < _STREAMED and present < declared:
                return f"its header declares {declared} bytes of samples, {present} are there"
        case "ogg" | "opus":
            return _ogg_cut(data)
    return None


def declared_seconds(data: bytes) -> float | None:
    """Duration by the header of a FLAC file, or of an MP3 file with a Xing/Info header.

    None where nothing is declared.
    """
    start = _id3_size(data)
    match kind(data):
        case "flac":
            info = int.from_bytes(data[start + 18 : start + 26], "big")
            rate, total = info >> 44, info & (2**36 - 1)
            return total / rate if rate and total else None
        case "mp3":
            return _xing_seconds(data[start : start + 512])
    return None


@dataclasses.dataclass(frozen=True)
class WaveHeader:
    """Format tag (1 PCM, 3 float), bits a sample, and sample bytes declared and present."""

    tag: int = 0
    bits: int = 0
    data_bytes: int = 0
    present_bytes: int = 0


def wave_header(data: bytes) -> WaveHeader:
    """Walks the RIFF (or RF64, EBU Tech 3306) chunks up to the samples."""
    tag, bits, long_size = 0, 0, None
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if name == b"ds64" and body + 16 <= len(data):
            long_size = struct.unpack_from("<Q", data, body + 8)[0]
        elif name == b"fmt " and body + 16 <= len(data):
            tag, bits = struct.unpack_from("<H12xH", data, body)
            if tag == _WAVE_EXTENSIBLE and body + 26 <= len(data):
                tag = struct.unpack_from("<H", data, body + 24)[0]
        elif name == b"data":
            size = long_size if size == 0xFFFF_FFFF and long_size is not None else size
            return WaveHeader(tag, bits, size, min(size, len(data) - body))
        at = body + size + size % 2
    return WaveHeader(tag, bits)


def _ogg_cut(data: bytes) -> str | None:
    """The last page must be whole and carry the end-of-stream flag (RFC 3533, section 6)."""
    page = data.rfind(b"OggS")
    header = data[page : page + 27]
    if len(header) < 27 or len(data) < page + 27 + header[26]:
        return "its last Ogg page is cut"
    lacing = data[page + 27 : page + 27 + header[26]]
    if len(data) < page + 27 + len(lacing) + sum(lacing):
        return "its last Ogg page is cut"
    return None if header[5] & _OGG_END_OF_STREAM else "its last Ogg page does not end the stream"


def _id3_size(data: bytes) -> int:
    """Length of a leading ID3v2 tag (four 7-bit bytes, plus the tag's own header)."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


@dataclasses.dataclass(frozen=True)
class _Mp3Frame:
    rate: int
    samples: int
    side_info: int  # bytes from the frame's start to a Xing header


def _mp3_frame(header: bytes) -> _Mp3Frame | None:
    """Reads a frame header of MPEG 1, 2 or 2.5 audio, layer III (ISO 11172-3, 2.4.2.3)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate_index = (header[1] >> 3) & 3, (header[2] >> 2) & 3
    if version == 1 or rate_index == 3 or header[2] >> 4 == 15:
        return None
    mpeg1, mono = version == 3, header[3] >> 6 == 3
    rate = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    side_info = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return _Mp3Frame(rate, 1152 if mpeg1 else 576, 4 + side_info)


def _xing_seconds(data: bytes) -> float | None:
    frame = _mp3_frame(data[:4])
    if frame is None:
        return None
    xing = data[frame.side_info :]
    if xing[:4] not in (b"Xing", b"Info") or len(xing) < 144 or not xing[7] & 1:
        return None
    samples = int.from_bytes(xing[8:12], "big") * frame.samples
    if xing[7] == 15 and xing[120:124].isalnum():  # the LAME extension: 12 bits each of
        trimmed = int.from_bytes(xing[141:144], "big")  # encoder delay and padding
        samples -= (trimmed >> 12) + (trimmed & 0xFFF)
    return samples / frame.rate
