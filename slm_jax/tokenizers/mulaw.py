"""The waveform itself as a stream: a code a sample, companded by the mu-law."""

from __future__ import annotations

from typing import Any

import numpy as np

from slm_jax.streams import StreamSpec, fingerprint
from slm_jax.tokenizers.checks import check_codes, check_rows

CODES = 256
_MU = CODES - 1


class MuLaw:
    """8-bit mu-law of ITU-T G.711 in its continuous form, as WaveNet predicts it (van den Oord et
    al. 2016, arXiv:1609.03499 §2.2).

    The stream's rate is that of the samples: resample the audio to it first. Nothing depends on
    other samples, so chunks of a stream are coded like rows. See `tokenizer.Tokenizer`.

    Attributes:
      spec, sample_rate, delay: as `Tokenizer` says.
    """

    delay = 0

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        name, rate = f"mulaw-{sample_rate}", float(sample_rate)
        self.spec = StreamSpec(
            name, "codes", rate, (CODES,), fingerprint=fingerprint("mulaw", CODES, sample_rate)
        )

    def encode(self, audio: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        """float32 [B, n], louder than 1 is clipped, and lengths int [B] -> codes int32 [B, n, 1],
        0 beyond a row's end, and the lengths.

        Raises:
          ValueError: shapes or types that do not fit.
          UserError: samples that are not finite or far too loud.
        """
        check_rows(audio, lengths)
        audio, lengths = np.asarray(audio, np.float32), np.asarray(lengths)
        small = np.log1p(_MU * np.minimum(np.abs(audio), 1)) / np.log1p(_MU)
        codes = np.floor((np.sign(audio) * small + 1) / 2 * _MU + 0.5).astype(np.int32)
        return np.where(_inside(codes, lengths), codes, 0)[..., None], lengths

    def decode(self, codes: Any, frames: Any) -> np.ndarray:
        """What `encode` gives -> float32 [B, n]; 0 beyond a row's end.

        Raises:
          ValueError: shapes or types that do not fit, or codes out of range.
        """
        check_codes(codes, frames, self.spec.vocab)
        small = 2 * np.asarray(codes, np.float32)[..., 0] / _MU - 1
        audio = np.sign(small) * np.expm1(np.abs(small) * np.log1p(_MU)) / _MU
        return np.where(_inside(audio, np.asarray(frames)), audio, 0).astype(np.float32)


def _inside(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """bool [B, n]."""
    return np.arange(rows.shape[1]) < lengths[:, None]
