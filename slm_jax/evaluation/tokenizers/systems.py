"""Tokenizers as systems of the suite: audio at 16 kHz in, what comes back and what was sent out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from slm_jax.tokenizers.codecs.kinds import CODECS, load_codec
from slm_jax.tokenizers.spoken_units import SpokenUnits, load_units
from slm_jax.tokenizers.taste import SPEAKER_BITS
from slm_jax.tokenizers.taste_tokenizer import TasteTokenizer
from slm_jax.tokenizers.text import TextTokenizer, encode_words
from slm_jax.tokenizers.unit_vocoder import spoken_by


class Judged(NamedTuple):
    """A tokenizer in the tables.

    Attributes:
      name: what they call it.
      coder: makes its codes.
      system: sends audio through it; None where nothing makes audio of its codes.
    """

    name: str
    coder: Coder
    system: System | None


def parse_codec(argument: str) -> Judged:
    """Loads "KIND=DIR", a kind of `CODECS` and the folder of its weights; of "KIND=DIR@8", the
    first 8 levels.

    Raises:
      UserError: it is not written so, or the folder holds no such codec.
    """
    kind, separator, weights = argument.partition("=")
    if not separator or kind not in CODECS:
        raise UserError(f"no codec: {argument}", f"write KIND=DIR, of {', '.join(CODECS)}")
    return _codec(kind, load_codec(kind, weights))


def starter_codecs() -> list[Judged]:
    """The codec that comes with the package, with all of its levels and with half of them."""
    whole = FrameCodec.load()
    return [_codec("codec", one) for one in (whole, FrameCodec.load(levels=whole.spec.levels // 2))]


def _codec(kind: str, codec: Codec) -> Judged:
    rate = codec.spec.clock * codec.spec.bits / 1000
    return Judged(f"{kind} {rate:.1f} kbit/s", frame_coder(codec), frame_system(codec))


def all_units(
    folders: Sequence[Path | None],
    vocoders: Sequence[Path],
    whisper: str,
    locate: Callable[[str], Path],
) -> list[Judged]:
    """Units of folders, each with what speaks them if that is there.

    Args:
      folders: of units (`spoken_units.load_units`), None for the starter's.
      vocoders: folders of unit vocoders; each speaks those of the units that it was trained for.
      whisper: what supervised units were trained in.
      locate: finds a model's folder by its name.

    Raises:
      UserError: a folder holds no units or no unit vocoder, or a vocoder is for other units.
    """
    found, unused = [], set(vocoders)
    for folder in folders:
        units = load_units(folder, whisper, locate)
        spec, coder = units.spec, frame_coder(units)
        source = "the starter" if folder is None else folder.name
        name = f"units {spec.clock * spec.bits / 1000:.1f} kbit/s, {spec.vocab[0]} of {source}"
        own = [path for path in vocoders if spoken_by(path) == spec.fingerprint]
        found += [
            Judged(
                f"{name}, spoken by {path.parent.name}",
                coder,
                frame_system(SpokenUnits.load(units, path)),
            )
            for path in own
        ] or [Judged(name, coder, None)]
        unused -= set(own)
    if unused:
        raise UserError(
            f"{', '.join(map(str, unused))}: trained for none of the units that are compared",
            "name these units, too: --units DIR",
        )
    return found


def frame_system(tokenizer: Codec | SpokenUnits) -> System:
    """A tokenizer of frames, at its own sample rate. Its bits are those of its codes and, of units,
    of the speaker vector."""
    rate, bits = tokenizer.sample_rate, tokenizer.spec.bits

    def through(audio: np.ndarray) -> Clip:
        heard = resample(audio, AUDIO_RATE, rate)
        codes, frames, *speakers = codes_of(tokenizer, heard)
        decoded = np.asarray(tokenizer.decode(codes, frames, *speakers))[0, : len(heard)]
        back = resample(decoded, rate, AUDIO_RATE)[: len(audio)]
        back = np.pad(back, (0, len(audio) - len(back)))
        count = int(frames[0])
        coded = on_frames(np.asarray(codes)[0, :count], tokenizer.spec.clock)
        return Clip(back, bits * count + sum(map(np.size, speakers)) * SPEAKER_BITS, coded)

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
