"""All kinds of codecs, by the name that files and flags call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from slm_jax.tokenizers.codecs.codec import Codec
from slm_jax.tokenizers.codecs.dac import Dac
from slm_jax.tokenizers.codecs.encodec import Encodec
from slm_jax.tokenizers.codecs.encodec_chunked import EncodecChunked
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec
from slm_jax.tokenizers.codecs.mimi import Mimi
from slm_jax.tokenizers.codecs.snac import Snac

CODECS: Mapping[str, Callable[[Path | str, int | None], Codec]] = {
    "codec": FrameCodec.load,
    "mimi": Mimi.load,
    "encodec": Encodec.load,
    "encodec_48khz": EncodecChunked.load,
    "dac": Dac.load,
    "snac": Snac.load,
}


def load_codec(kind: str, weights: Path | str) -> Codec:
    """Loads a codec of one of `CODECS`.

    Args:
      kind: of the codec.
      weights: its folder; "FOLDER@8" for the first 8 of its levels.

    Raises:
      UserError: the folder holds no such codec, or the codec has no so many levels.
    """
    folder, separator, levels = str(weights).rpartition("@")
    if separator and levels.isdigit():
        return CODECS[kind](folder, int(levels))
    return CODECS[kind](weights, None)
