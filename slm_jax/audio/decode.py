"""Audio files and bytes to mono float32 at the rate asked, and back.

Decoders: `soundfile` (libsndfile) by default, `pyav` (FFmpeg) for what libsndfile cannot read,
`tfio` (tensorflow-io, in a second interpreter) when chosen. All of them hand over samples at the
file's own rate; mixing down and resampling happen here, so that they differ in nothing else.
How far they agree on each format is in docs/audio.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile

from slm_jax.audio import container, tfio_client
from slm_jax.audio.errors import AudioError
from slm_jax.audio.resample import resample
from slm_jax.errors import UserError

__all__ = ["DECODERS", "AudioError", "encode_flac", "load", "write_wav"]

DECODERS = ("auto", "soundfile", "pyav", "tfio")

# Seconds that may be missing against the header: decoders trim an encoder's delay differently.
_SLACK = 0.1
_DECLARES_DURATION = ("mov", "mp4", "matroska", "webm")  # FFmpeg formats that store it


@dataclasses.dataclass(frozen=True)
class _Decoded:
    samples: np.ndarray  # float32 [n, channels]
    rate: int
    declared_seconds: float | None = None


def load(
    source: str | os.PathLike | bytes,
    rate: int = 16_000,
    decoder: str = "auto",
    tfio_python: str | None = None,
) -> np.ndarray:
    """Decodes a file, or its bytes, to mono.

    WAV, FLAC, MP3, Ogg Vorbis, Opus, raw G.722 (a path that ends in .g722) and whatever else
    libsndfile or FFmpeg reads, of any rate and channel count. Channels are averaged.

    Args:
      source: path, or the bytes of a file.
      rate: sample rate of the result, Hz.
      decoder: "auto", "soundfile", "pyav" or "tfio".
      tfio_python: interpreter of the tensorflow-io environment for decoder "tfio"; by default
        $SLM_JAX_TFIO_PYTHON.

    Returns:
      float32 [n], nominally in [-1, 1], n > 0, all finite.

    Raises:
      AudioError: the file cannot be used; `.reason` says why in a word.
      UserError: unknown decoder, or no tensorflow-io environment.
    """
    if decoder not in DECODERS:
        near = difflib.get_close_matches(str(decoder), DECODERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"unknown audio decoder {decoder!r}", f"{hint}choose one of {', '.join(DECODERS)}"
        )
    name, data = _read(source)
    kind = container.kind(data, name)
    if kind == "g722":
        _refuse_text(name, data)
    elif cut := container.missing_bytes(data):
        raise AudioError("truncated", f"{name} is truncated: {cut}")

    decoded = _decode(name, data, kind, decoder, tfio_python)
    if not len(decoded.samples):
        raise AudioError("empty", f"{name} holds no samples")
    _check_duration(name, decoded, container.declared_seconds(data))
    audio = resample(decoded.samples.mean(axis=1), decoded.rate, rate)
    if not len(audio):
        raise AudioError("empty", f"{name} is shorter than one sample at {rate} Hz")
    if not np.isfinite(audio).all():
        raise AudioError("non-finite", f"{name} holds NaN or infinite samples")
    return audio


def encode_flac(audio: np.ndarray, rate: int = 16_000) -> bytes:
    """16-bit FLAC of mono audio; `load` returns the same samples, rounded to 1/32768.

    Args:
      audio: float [n]; clipped to [-1, 1).
      rate: Hz.

    Raises:
      AudioError: no samples (FLAC has no such file), or some not finite.
    """
    if not len(audio):
        raise AudioError("empty", "there are no samples to encode as FLAC")
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(audio), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_wav(path: str | os.PathLike, audio: np.ndarray, rate: int = 16_000) -> None:
    """Writes mono audio as 16-bit WAV; the file appears whole or not at all.

    Args:
      path: replaced if it exists.
      audio: float [n]; clipped to [-1, 1).
      rate: Hz.

    Raises:
      AudioError: some samples are not finite.
      UserError: no such folder, or no space; an older file is as it was.
    """
    path = Path(path)
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(audio), rate, format="WAV", subtype="PCM_16")
    try:
        _replace(path, buffer.getvalue())
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", "check the folder and the space left on it"
        ) from error


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        name, data = f"audio of {len(source)} bytes", source
    else:
        name = os.fspath(source)
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise AudioError(
                "missing", f"cannot open {name}: {error.strerror}", "check the path"
            ) from error
    if not data:
        raise AudioError("empty", f"{name} is empty (0 bytes)")
    return name, data


def _decode(name: str, data: bytes, kind: str, decoder: str, tfio_python: str | None) -> _Decoded:
    if decoder == "tfio":
        return _Decoded(*tfio_client.shared(tfio_python).decode(data, name))
    if decoder == "pyav" or (decoder == "auto" and kind == "g722"):
        return _decode_pyav(name, data, kind)
    fallback = (lambda: _decode_pyav(name, data, kind)) if decoder == "auto" else None
    return _decode_soundfile(name, data, kind, fallback)


def _decode_soundfile(
    name: str, data: bytes, kind: str, fallback: Callable[[], _Decoded] | None
) -> _Decoded:
    """Falls back on a format that libsndfile does not know, but not on damage that it found."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        if fallback is not None:
            return fallback()
        raise AudioError(
            "unsupported" if kind == "g722" else "unreadable",
            f"soundfile cannot read {name}: {error.error_string}",
            'decoder="auto" or "pyav" reads more formats; if they fail too, replace the file',
        ) from error
    try:
        with file:
            return _Decoded(file.read(dtype="float32", always_2d=True), file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError("unreadable", f"{name} is corrupt: {error}") from error


def _decode_pyav(name: str, data: bytes, kind: str) -> _Decoded:
    try:
        with av.open(io.BytesIO(data), format="g722" if kind == "g722" else None) as file:
            if not file.streams.audio:
                raise AudioError("unreadable", f"{name} has no audio stream")
            stream = file.streams.audio[0]
            declared = None
            if stream.duration and set(file.format.name.split(",")) & set(_DECLARES_DURATION):
                declared = float(stream.duration * stream.time_base)
            to_float = av.AudioResampler(format="fltp")
            chunks = [
                chunk.to_ndarray()
                for frame in [*file.decode(stream), None]  # None flushes the resampler
                for chunk in to_float.resample(frame)
            ]
            rate = stream.rate
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(
            "unreadable", f"{name} is not audio that can be decoded: {reason}"
        ) from error
    samples = np.concatenate(chunks, axis=1).T if chunks else np.zeros((0, 1), np.float32)
    return _Decoded(samples, rate, declared)


def _check_duration(name: str, decoded: _Decoded, by_header: float | None) -> None:
    found = len(decoded.samples) / decoded.rate
    for declared in (by_header, decoded.declared_seconds):
        if declared is not None and found < declared - _SLACK:
            raise AudioError(
                "truncated",
                f"{name} is truncated: its header declares {declared:.2f} s, {found:.2f} s decode",
            )


def _refuse_text(name: str, data: bytes) -> None:
    """Any bytes decode as G.722, so at least a text file under its name is caught."""
    if data[:4096].isascii():
        raise AudioError("unreadable", f"{name} holds text, not G.722 audio")


def _pcm16(audio: np.ndarray) -> np.ndarray:
    # Scaled here since libsndfile writes by 32767 and reads by 32768, which is not the identity.
    audio = np.asarray(audio)
    if audio.ndim != 1:
        raise ValueError(f"mono audio has one axis, got shape {audio.shape}")
    if not np.isfinite(audio).all():
        raise AudioError("non-finite", "audio to be written holds NaN or infinite samples")
    return np.rint(audio * 32768.0).clip(-32768, 32767).astype(np.int16)
