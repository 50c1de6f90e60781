"""The interface that every speech tokenizer has, whatever its kind."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from slm_jax.streams import StreamSpec


class Tokenizer(Protocol):
    """Audio to codes and back.

    `decode(*encode(audio, lengths))` is the audio again, for every kind. What codes leave out by
    design travels beside them, as further results of `encode` and further arguments of `decode`:

    | kind | beside codes and frames |
    |---|---|
    | codecs (`codecs.codec.Codec`) | nothing |
    | units (`SpokenUnits`) | speaker vectors float32 [B, E] |
    | TASTE (`TasteTokenizer`) | speaker vectors float32 [B, E], the words of each row |

    Attributes:
      spec: the stream of codes: its clock (a rate, or one word), vocabulary, bits, look-ahead,
        fingerprint.
      sample_rate: of the audio in and out, in Hz.
      delay: samples by which decoded audio lags behind the audio it was made from.
    """

    spec: StreamSpec
    sample_rate: int
    delay: int

    def encode(self, audio: Any, lengths: Any) -> tuple[Any, ...]:
        """Encodes rows; a row gives the same whatever it is batched with.

        Args:
          audio: float32 [B, n], one channel at `sample_rate`.
          lengths: int [B], samples of each row.

        Returns:
          codes: int32 [B, T, K], coarse level first; 0 beyond a row's frames.
          frames: int [B]; of a word clock, words.
          and what else `decode` needs.
        """
        ...

    def decode(self, codes: Any, frames: Any, *beside: Any) -> Any:
        """What `encode` gives -> float32 [B, n] at `sample_rate`; 0 beyond a row's end."""
        ...


def stack(rows: list[np.ndarray], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Rows [t, ...] of different lengths -> one array [B, T, ...], zeros behind their ends, and the
    lengths int32 [B]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    filled = np.zeros((len(rows), lengths.max(initial=0), *rows[0].shape[1:]), dtype)
    for into, row in zip(filled, rows, strict=True):
        into[: len(row)] = row
    return filled, lengths
