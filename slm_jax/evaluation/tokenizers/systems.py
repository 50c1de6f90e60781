"""Tokenizers as systems of the suite: audio at 16 kHz in, what comes back and what was sent out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError
from slm_jax.evaluation.tokenizers.resynthesis import Clip, System
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.codecs.codec import Codec
from slm_jax.tokenizers.codecs.dac import Dac
from slm_jax.tokenizers.codecs.encodec import Encodec
from slm_jax.tokenizers.codecs.encodec_chunked import EncodecChunked
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec
from slm_jax.tokenizers.codecs.mimi import Mimi
from slm_jax.tokenizers.codecs.snac import Snac
from slm_jax.tokenizers.taste import SPEAKER_BITS, Taste
from slm_jax.tokenizers.text import TextTokenizer, encode_words

KINDS: Mapping[str, Callable[[Path], Codec]] = {
    "codec": FrameCodec.load,
    "mimi": Mimi.load,
    "encodec": Encodec.load,
    "encodec_48khz": EncodecChunked.load,
    "dac": Dac.load,
    "snac": Snac.load,
}
_LENGTHS = (2, 4, 8, 16, 32)  # seconds that audio is padded to; one compilation each


class NamedCodec(NamedTuple):
    """A codec and what the table calls it."""

    name: str
    codec: Codec


def parse_codec(argument: str) -> NamedCodec:
    """Loads "KIND=DIR", a kind of `KINDS` and the folder of its weights.

    Raises:
      UserError: it is not written so, or the folder holds no such codec.
    """
    kind, separator, folder = argument.partition("=")
    if not separator or kind not in KINDS:
        raise UserError(f"no codec: {argument}", f"write KIND=DIR, of {', '.join(KINDS)}")
    codec = KINDS[kind](Path(folder))
    rate = codec.spec.clock * np.log2(codec.spec.vocab).sum() / 1000
    return NamedCodec(f"{kind} {rate:.1f} kbit/s", codec)


def codec_system(codec: Codec) -> System:
    """A codec at its own sample rate; its bits are those of its codes."""
    rate = codec.sample_rate
    bits = float(np.log2(codec.spec.vocab).sum())

    def through(audio: np.ndarray) -> Clip:
        heard = resample(audio, AUDIO_RATE, rate)
        room = next((s * rate for s in _LENGTHS if s * rate >= len(heard)), len(heard))
        padded = np.pad(heard, (0, room - len(heard)))[None]
        codes, frames = codec.encode(padded, np.array([len(heard)]))
        count = int(frames[0])
        decoded = np.asarray(codec.decode(codes, frames))[0, : len(heard)]
        back = resample(decoded, rate, AUDIO_RATE)[: len(audio)]
        back = np.pad(back, (0, len(audio) - len(back)))
        return Clip(back, bits * count, np.asarray(codes)[0, :count])

    return through


def taste_system(taste: Taste, asr: Asr, text: TextTokenizer) -> System:
    """TASTE from audio alone: an ASR finds the words. Its bits are those of the codes, of the
    words as ids of a language model, and of the speaker vector. What has no words fails."""
    bits = float(np.log2(taste.spec.vocab).sum())

    def through(audio: np.ndarray) -> Clip:
        [heard] = asr.transcribe([audio])
        if not heard.words:
            return Clip(np.zeros(0, np.float32))
        [codes], [speaker] = taste.encode([audio], [heard.words])
        words = [word.text for word in heard.words]
        [spoken], _ = taste.decode([words], [codes], [speaker])
        ids, _ = encode_words(text, words, "en")
        sent = len(words) * bits + len(ids) * np.log2(text.vocab_size) + len(speaker) * SPEAKER_BITS
        return Clip(spoken, float(sent), codes)

    return through
