"""What tokenizers refuse, found on the host before anything is compiled or computed.

Silence, clipping, one sample and no sample at all are audio like any other. A recording that is
broken or too long is a UserError; arguments that do not fit each other are a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.errors import UserError

LOUDEST = 100.0  # 40 dB above full scale; integers made floats and not divided are louder
_MONO = "one channel of floats in [-1, 1] (integers divided by their largest)"


def mono(audio: Any) -> np.ndarray:
    """One recording [n] as float32.

    Raises:
      ValueError: no vector of floats.
      UserError: a sample that is not finite, or beyond LOUDEST.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or not _is_float(audio):
        raise ValueError(f"audio is {_said(audio)}, wanted [n], {_MONO}")
    _listen(audio, "the audio")
    return audio.astype(np.float32, copy=False)


def check_rows(audio: Any, lengths: Any) -> None:
    """Audio [B, n] and the lengths [B] of its rows; what lies beyond these is not looked at.

    Raises:
      ValueError: other shapes or types, or lengths outside of [0, n].
      UserError: a sample that is not finite, or beyond LOUDEST.
    """
    audio = np.asarray(audio)
    if audio.ndim != 2 or not _is_float(audio):
        raise ValueError(f"audio is {_said(audio)}, wanted [B, n], {_MONO}")
    lengths = _counts("lengths", lengths, *audio.shape)
    for i, (row, length) in enumerate(zip(audio, lengths, strict=True)):
        _listen(row[:length], f"row {i}")


def check_codes(codes: Any, frames: Any, vocab: Sequence[int], fewest: int = 1) -> None:
    """Codes [B, T, K'] of the first K' levels, and the frames [B] of each row; what lies beyond
    these is not looked at.

    Args:
      codes, frames: what will be decoded.
      vocab: how many codes each level has.
      fewest: levels that there must be.

    Raises:
      ValueError: other shapes or types, too many levels or too few, frames outside of [0, T], or
        codes outside of the vocabulary.
    """
    codes = np.asarray(codes)
    _check_levels(codes, vocab, fewest)
    frames = _counts("frames", frames, *codes.shape[:2])
    _check_range(codes[np.arange(codes.shape[1]) < frames[:, None]], vocab)


def check_chunk(audio: Any, batch: int) -> None:
    """A stream's next audio [B, n]. An array on a device is not looked into: that would wait for
    what computes it.

    Raises:
      ValueError: another shape or type.
      UserError: a sample that is not finite, or beyond LOUDEST.
    """
    looked_at = not isinstance(audio, jax.Array)
    audio = np.asarray(audio) if looked_at else audio
    if audio.ndim != 2 or len(audio) != batch or not _is_float(audio):
        raise ValueError(f"audio is {_said(audio)}, wanted [{batch}, n], {_MONO}")
    if looked_at:
        for i, row in enumerate(audio):
            _listen(row, f"row {i}")


def check_chunk_codes(codes: Any, batch: int, vocab: Sequence[int]) -> None:
    """A stream's next codes [B, T, K'], T > 0. An array on a device is not looked into, and codes
    out of range are there taken for others.

    Raises:
      ValueError: another shape or type, too many levels, or codes outside of the vocabulary.
    """
    looked_at = not isinstance(codes, jax.Array)
    codes = np.asarray(codes) if looked_at else codes
    _check_levels(codes, vocab, 1)
    if len(codes) != batch or not codes.shape[1]:
        raise ValueError(f"codes are {_said(codes)}, wanted [{batch}, T, K] with T > 0")
    if looked_at:
        _check_range(codes.reshape(-1, codes.shape[2]), vocab)


def check_vectors(name: str, vectors: Any, count: int, width: int) -> None:
    """Vectors [count, width], such as speakers.

    Raises:
      ValueError: others, or values that are not finite.
    """
    vectors = np.asarray(vectors)
    if vectors.shape != (count, width) or not _is_float(vectors):
        raise ValueError(f"{name} are {_said(vectors)}, wanted float [{count}, {width}]")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name} have values that are not finite")


def check_duration(seconds: float, longest: float, remedy: str) -> None:
    """Refuses what would exhaust the memory.

    Raises:
      UserError: more than `longest` seconds.
    """
    if seconds > longest:
        raise UserError(f"{seconds:.0f} s at once, at most {longest:.0f} s fit", remedy)


def _listen(samples: np.ndarray, name: str) -> None:
    if not samples.size:
        return
    loudest = max(samples.max(), -samples.min())  # NaN wherever one is
    if not np.isfinite(loudest):
        raise UserError(f"{name} has samples that are not finite", "leave that recording out")
    if loudest > LOUDEST:
        raise UserError(
            f"{name} reaches {loudest:.0f}, and full scale is 1",
            "divide samples that were integers by their largest (32768 for 16 bits)",
        )


def _counts(name: str, counts: Any, batch: int, most: int) -> np.ndarray:
    counts = np.asarray(counts) if np.size(counts) else np.zeros(np.shape(counts), np.int32)
    if counts.shape != (batch,) or counts.dtype.kind not in "iu":
        raise ValueError(f"{name} are {_said(counts)}, wanted int [{batch}]")
    if batch and not 0 <= counts.min() <= counts.max() <= most:
        raise ValueError(f"{name} are {counts.min()} to {counts.max()}, not within 0 to {most}")
    return counts


def _check_levels(codes: Any, vocab: Sequence[int], fewest: int) -> None:
    if codes.ndim != 3 or codes.dtype.kind not in "iu":
        raise ValueError(f"codes are {_said(codes)}, wanted int [B, T, K]")
    if not fewest <= codes.shape[2] <= len(vocab):
        raise ValueError(f"codes have {codes.shape[2]} levels, wanted {fewest} to {len(vocab)}")


def _check_range(codes: np.ndarray, vocab: Sequence[int]) -> None:
    """Of codes [m, K']."""
    if codes.size and (codes.min() < 0 or (codes.max(axis=0) >= vocab[: codes.shape[1]]).any()):
        raise ValueError(
            f"codes are {codes.min()} to {codes.max()}, outside the vocabulary {tuple(vocab)}"
        )


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _said(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
