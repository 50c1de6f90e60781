"""Tokenizers as systems of the suite: audio at 16 kHz in, what comes back and what was sent out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError
from slm_jax.evaluation.tokenizers.coders import (
    Coder,
    codes_of,
    frame_coder,
    on_frames,
    on_words,
)
from slm_jax.evaluation.tokenizers.resynthesis import Clip, System
from slm_jax.tokenizers.codecs.codec import Codec
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec
from slm_jax.tokenizers.codecs.kinds import CODECS
from slm_jax.tokenizers.taste import SPEAKER_BITS
from slm_jax.tokenizers.taste_tokenizer import TasteTokenizer
from slm_jax.tokenizers.text import TextTokenizer, encode_words
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer


class NamedCodec(NamedTuple):
    """A codec and what the table calls it."""

    name: str
    codec: Codec


def parse_codec(argument: str) -> NamedCodec:
    """Loads "KIND=DIR", a kind of `CODECS` and the folder of its weights.

    Raises:
      UserError: it is not written so, or the folder holds no such codec.
    """
    kind, separator, folder = argument.partition("=")
    if not separator or kind not in CODECS:
        raise UserError(f"no codec: {argument}", f"write KIND=DIR, of {', '.join(CODECS)}")
    return _named(kind, CODECS[kind](Path(folder)))


def starter_codecs() -> list[NamedCodec]:
    """The codec that comes with the package, with all of its levels and with half of them."""
    whole = FrameCodec.load()
    return [_named("codec", one) for one in (whole, FrameCodec.load(levels=whole.spec.levels // 2))]


def _named(kind: str, codec: Codec) -> NamedCodec:
    rate = codec.spec.clock * codec.spec.bits / 1000
    return NamedCodec(f"{kind} {rate:.1f} kbit/s", codec)


def load_units(folder: Path | None, locate: Callable[[str], Path]) -> tuple[str, Coder]:
    """What the tables call the units of a folder, and what makes them; nothing here speaks them.

    Args:
      folder: of a `UnitTokenizer`; None for the starter.
      locate: finds its encoder.

    Raises:
      UserError: the folder holds no units, or they do not belong to the encoder.
    """
    tokenizer = UnitTokenizer.load(folder, locate=locate)
    name = "the starter" if folder is None else folder.name
    return f"units, {tokenizer.spec.vocab[0]} of {name}", frame_coder(tokenizer)


def codec_system(codec: Codec) -> System:
    """A codec at its own sample rate; its bits are those of its codes."""
    rate = codec.sample_rate
    bits = float(np.log2(codec.spec.vocab).sum())

    def through(audio: np.ndarray) -> Clip:
        heard = resample(audio, AUDIO_RATE, rate)
        codes, frames = codes_of(codec, heard)
        decoded = np.asarray(codec.decode(codes, frames))[0, : len(heard)]
        back = resample(decoded, rate, AUDIO_RATE)[: len(audio)]
        back = np.pad(back, (0, len(audio) - len(back)))
        count = int(frames[0])
        coded = on_frames(np.asarray(codes)[0, :count], codec.spec.clock)
        return Clip(back, bits * count, coded)

    return through


def taste_system(tokenizer: TasteTokenizer, text: TextTokenizer) -> System:
    """TASTE from audio alone. Its bits are those of the codes, of the words as ids of a language
    model, and of the speaker vector. What has no words fails."""
    bits = float(np.log2(tokenizer.spec.vocab).sum())

    def through(audio: np.ndarray) -> Clip:
        codes, count, speakers, heard = tokenizer.encode(audio[None], np.array([len(audio)]))
        [words] = heard
        if not words:
            return Clip(np.zeros(0, np.float32))
        [spoken] = tokenizer.decode(codes, count, speakers, heard)
        ids, _ = encode_words(text, [word.text for word in words], "en")
        speaker = speakers.size * SPEAKER_BITS
        sent = len(words) * bits + len(ids) * np.log2(text.vocab_size) + speaker
        return Clip(spoken, float(sent), on_words(codes[0], words))

    return through
