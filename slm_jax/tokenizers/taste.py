"""The TASTE tokenizer: audio and its words to K codes a word, and back to audio.

TASTE (Tseng et al. 2025, arXiv 2504.07053). Encoder: frozen Whisper, aggregator, RVQ or FSQ.
Decoder: durations and mels from words, codes and a speaker vector, then the vocoder. The decoder
never receives times.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from slm_jax.audio.features import MelConfig, log_envelope
from slm_jax.audio.pitch import PitchConfig, pitch
from slm_jax.data.schema import Word
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import FsqConfig, RvqConfig, fsq_codebooks
from slm_jax.nn.tree import Params, flatten, load_flat
from slm_jax.streams import UTTERANCE, WORD, StreamSpec, fingerprint
from slm_jax.tokenizers.checks import check_vectors, mono
from slm_jax.tokenizers.taste_decoder import TasteDecoderConfig, round_durations, word_times
from slm_jax.tokenizers.taste_listen import CONTEXTS, RATE, Listener
from slm_jax.tokenizers.taste_network import (
    TasteConfig,
    TasteNetwork,
    aligned,
    bucket,
    pad_heard,
)
from slm_jax.tokenizers.taste_text import (
    Pronunciations,
    identify_pronunciations,
    read_dictionary,
    read_text,
)
from slm_jax.tokenizers.vocoder import VocoderConfig, fill_pitch
from slm_jax.tokenizers.whisper import Whisper

STARTER = Path(__file__).resolve().parent.parent / "weights" / "taste"
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
DICTIONARY = "pronunciations"  # key of config.json: which dictionary it was trained with
SPEAKER_BITS = 8  # of each number of a speaker vector
_BATCH = 8
_LONGEST = CONTEXTS[-1] - 1.0  # seconds that are heard at once


def taste_fingerprint(path: Path | str | None = None) -> str:
    """The fingerprint of a tokenizer folder's streams, by default the starter's.

    Raises:
      UserError: a file is missing.
    """
    return _identify(path)[1]


def _identify(path: Path | str | None) -> tuple[Path, str]:
    folder = Path(path) if path else STARTER
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            remedy = "train one: python launch/train_tokenizer.py --gin_file=taste_tokenizer.gin"
            raise UserError(f"no TASTE tokenizer in {folder}: {name} is missing", remedy)
    files = [(folder / name).read_bytes() for name in (CONFIG, WEIGHTS)]
    return folder, fingerprint(*files)


class Taste:
    """Encode and decode with trained weights; `Taste.load` reads them.

    Attributes:
      spec, speaker_spec: the two streams it makes.
      default_speaker: float32 [speaker_width], the starter's voice.
      codebook_latents: float32 [K, V, latent]; the sum of one vector a level is a word's latent.
      vocoder_lookahead, frame_lookahead: seconds of future that decoding needs, by part.
      text_lookahead: symbols of future text that decoding needs.
    """

    def __init__(
        self,
        config: TasteConfig,
        params: Params,
        default_speaker: np.ndarray,
        pronunciations: Pronunciations,
        whisper: Path | str,
        identity: str,
    ):
        self.config = config
        self._pronunciations = pronunciations
        self.default_speaker = default_speaker
        self._listener = Listener(whisper, config.value_layers, config.vocoder.mel)
        network = TasteNetwork(config, self._listener.config)
        self._network = network
        self._params = params
        mel = config.vocoder.mel
        self._frame_seconds = mel.hop / mel.rate
        decoder = network.part(params, "decoder")
        self.text_lookahead = decoder.text_lookahead
        self.frame_lookahead = decoder.frame_lookahead * self._frame_seconds
        self.vocoder_lookahead = network.part(params, "vocoder").lookahead
        self.spec = StreamSpec(
            "taste", "codes", WORD, vocab=config.vocab, fingerprint=identity, lookahead=_LONGEST
        )
        self.speaker_spec = StreamSpec(
            "speaker", "continuous", UTTERANCE, width=config.speaker_width, fingerprint=identity
        )
        self._encode = jax.jit(self._encode_batch, static_argnames="words")
        self._read = jax.jit(self._read_batch)
        self._write = jax.jit(self._write_batch, static_argnames="frames")
        self._vocode = jax.jit(self._vocode_batch)

    @classmethod
    def load(
        cls, whisper: Path | str, pronunciations: Path | str, path: Path | str | None = None
    ) -> Taste:
        """Reads a tokenizer folder (config.json, weights.safetensors), by default the starter.

        Args:
          whisper: folder of the Whisper whose features it was trained on.
          pronunciations: the dictionary that it was trained with.
          path: the folder.

        Raises:
          UserError: a file is missing or does not fit.
        """
        folder, identity = _identify(path)
        config, dictionary = _read_config(folder / CONFIG)
        known = read_dictionary(pronunciations)
        if identify_pronunciations(known) != dictionary:
            raise UserError(
                f"{folder} learned to read by another dictionary than {pronunciations}",
                "give the one that it was trained with",
            )
        weights_file = folder / WEIGHTS
        try:
            flat = load_file(weights_file)
        except Exception as error:  # safetensors raises its own bare exception
            raise UserError(f"{weights_file} is damaged: {error}", "restore the file") from error
        default_speaker = flat.pop("default_speaker").astype(np.float32)
        network = TasteNetwork(config, Whisper.load(whisper).config)
        target = jax.eval_shape(lambda: network.init(0))
        target["quantizer"].pop("counts", None)
        target["quantizer"].pop("sums", None)
        params = load_flat(target, {k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})
        return cls(config, params, default_speaker, known, whisper, identity)

    @property
    def codebook_latents(self) -> np.ndarray:
        if self.config.quantizer == "fsq":
            return np.asarray(fsq_codebooks(self.config.fsq))
        return np.asarray(self._params["quantizer"]["codebooks"])

    def encode(
        self, audios: Sequence[np.ndarray], words: Sequence[Sequence[Any]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Tokenizes utterances.

        Args:
          audios: mono float32 at 16 kHz.
          words: of each, with `text`, `start` and `end` (seconds). The times bound the search of
            the tokenizer's own aligner, and decide where audio beyond 29 s is cut.

        Returns:
          codes: int32 [W, K] for each.
          speakers: float32 [speaker_width] for each, of unit length, in steps of 1 / 127.

        Raises:
          ValueError: audio that is no vector of floats, or a word whose end is before its start.
          UserError: samples that are not finite or far too loud, or no words to cut a recording of
            more than 29 s at.
        """
        audios = [mono(audio) for audio in audios]
        for word in (word for spoken in words for word in spoken):
            if not -np.inf < word.start <= word.end < np.inf:
                raise ValueError(f"{word.text!r} lasts from {word.start} to {word.end} s")
        pieces = [_cut(audio, spoken) for audio, spoken in zip(audios, words, strict=True)]
        flat = [piece for utterance in pieces for piece in utterance]
        codes, speakers = self._encode_short([a for a, _ in flat], [w for _, w in flat])
        all_codes, all_speakers, at = [], [], 0
        for utterance in pieces:
            here = slice(at, at + len(utterance))
            at += len(utterance)
            all_codes.append(np.concatenate(codes[here]))
            mean = np.mean(speakers[here], axis=0)
            all_speakers.append(round_speaker(mean / np.linalg.norm(mean)))
        return all_codes, all_speakers

    def _encode_short(self, audios, words):
        heard = self._listener.hear(audios, words, self._pronunciations)
        codes: list[Any] = [None] * len(audios)
        speakers: list[Any] = [None] * len(audios)
        order = sorted(range(len(audios)), key=lambda i: len(audios[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            chunk = [heard[i] for i in rows]
            frames = bucket(max(len(h.mel) for h in chunk), 256)
            length = bucket(max(len(h.text.ids) for h in chunk), 64)
            tokens = bucket(max(len(h.tokens) for h in chunk), 32)
            batch = pad_heard(chunk, self._listener, _BATCH, frames, length, tokens)
            count = bucket(max(len(words[i]) for i in rows), 16)
            found, voices = jax.device_get(self._encode(self._params, batch, words=count))
            for row, i in enumerate(rows):
                codes[i], speakers[i] = found[row, : len(words[i])], voices[row]
        return codes, speakers

    def _encode_batch(self, params, batch, *, words):
        speaker = self._network.speaker(params, batch)
        _, prior = self._network.part(params, "decoder").read(batch["ids"], speaker)
        durations = aligned(prior, batch)
        latents = self._network.latents(params, batch, words, durations)
        codes = self._network.quantize(params, latents, jnp.ones(latents.shape[:2]), 1).codes
        return codes, speaker

    def decode(
        self,
        words: Sequence[Sequence[str]],
        codes: Sequence[np.ndarray] | None,
        speakers: Sequence[np.ndarray],
    ) -> tuple[list[np.ndarray], list[list[tuple[float, float]]]]:
        """Speaks words as their codes say.

        Args:
          words: of each utterance, none of them empty lists.
          codes: int [W, K] each; None to speak from the text alone.
          speakers: float [speaker_width] each.

        Returns:
          audio: float32 at 16 kHz, in [-1, 1].
          times: (start, end) in seconds of each word.

        Raises:
          ValueError: an utterance without words, codes of another shape, type or range, or
            speakers of another shape or not finite.
        """
        for voice, _ in zip(speakers, words, strict=True):
            check_vectors("speakers", [voice], 1, self.config.speaker_width)
        told = float(codes is not None)
        if codes is None:
            codes = [np.zeros((len(row), len(self.config.vocab)), np.int32) for row in words]
        for spoken, ids in zip(words, codes, strict=True):
            wanted = (len(spoken), len(self.config.vocab))
            ids = np.asarray(ids)
            if not spoken or ids.shape != wanted or ids.dtype.kind not in "iu":
                raise ValueError(f"codes of shape {ids.shape} ({ids.dtype}) for {wanted[0]} words")
            if np.min(ids) < 0 or np.any(np.max(ids, axis=0) >= self.config.vocab):
                raise ValueError(f"codes outside the vocabulary {self.config.vocab}")
        texts = [read_text(spoken, self._pronunciations) for spoken in words]
        audios: list[Any] = [None] * len(words)
        times: list[Any] = [None] * len(words)
        order = sorted(range(len(words)), key=lambda i: len(texts[i].ids))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            spoken = self._speak(
                [texts[i] for i in rows],
                [codes[i] for i in rows],
                [speakers[i] for i in rows],
                told,
            )
            for i, (audio, durations) in zip(rows, spoken, strict=True):
                audios[i] = audio
                times[i] = word_times(durations, texts[i], len(words[i]), self._frame_seconds)
        return audios, times

    def vocode(self, audio: np.ndarray) -> np.ndarray:
        """Mono 16 kHz audio through its own mels, pitch and the vocoder alone: the decoder's
        ceiling."""
        audio, mel_config = mono(audio), self.config.vocoder.mel
        length = bucket(max(len(audio), 1), 64 * mel_config.hop)
        padded = np.pad(audio, (0, length - len(audio)))[None]
        hertz, voiced = pitch(padded, PitchConfig(rate=mel_config.rate, hop=mel_config.hop))
        voiced = voiced.astype(jnp.float32)
        hertz = fill_pitch(hertz, voiced)
        mel = log_envelope(jnp.asarray(padded), hertz, mel_config)
        out = self._vocode(self._params, mel, hertz, voiced)
        return np.asarray(out)[0, : len(audio)]

    def _speak(self, texts, codes, speakers, told):
        length = bucket(max(len(t.ids) for t in texts), 64)
        count = bucket(max(len(c) for c in codes), 16)
        ids = np.zeros((_BATCH, length), np.int32)
        index = np.zeros((_BATCH, length), np.int32)
        levels = np.zeros((_BATCH, count, len(self.config.vocab)), np.int32)
        voices = np.tile(self.default_speaker, (_BATCH, 1))
        for row, (text, code, voice) in enumerate(zip(texts, codes, speakers, strict=True)):
            ids[row, : len(text.ids)], index[row, : len(text.ids)] = text.ids, text.words
            levels[row, : len(code)], voices[row] = code, voice
        hidden, durations = self._read(self._params, ids, index, levels, voices, told)
        durations = np.asarray(durations)
        frames = durations.sum(1)
        audio = self._write(self._params, hidden, durations, frames=bucket(frames.max() + 1, 128))
        hop = self.config.vocoder.mel.hop
        audio = np.asarray(audio)
        return [(audio[row, : frames[row] * hop], durations[row]) for row in range(len(texts))]

    def _read_batch(self, params, ids, index, codes, speakers, told):
        latents = self._network.dequantize(params, codes) * told
        decoder = self._network.part(params, "decoder")
        hidden, _ = decoder.read(ids, speakers)
        hidden, log_durations = decoder.tell(hidden, ids, index, latents)
        return hidden, round_durations(log_durations, ids)

    def _write_batch(self, params, hidden, durations, *, frames):
        decoder = self._network.part(params, "decoder")
        return self._vocode_batch(params, *decoder.sound(hidden, durations, frames))

    def _vocode_batch(self, params, mel, hertz, voiced):
        return jnp.clip(self._network.part(params, "vocoder")(mel, hertz, voiced), -1, 1)


def _read_config(path: Path) -> tuple[TasteConfig, str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        dictionary = data.pop(DICTIONARY)
        return taste_config(data), dictionary
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the configuration of a TASTE tokenizer of this version: {error!r}",
            "train it again, or take the starter weights",
        ) from error


def round_speaker(vector: np.ndarray) -> np.ndarray:
    """What SPEAKER_BITS a number leave of a unit vector: multiples of 1/127."""
    steps = 2 ** (SPEAKER_BITS - 1) - 1
    return (np.rint(np.clip(vector, -1, 1) * steps) / steps).astype(np.float32)


def save_taste(
    folder: Path,
    config: TasteConfig,
    params: Params,
    default_speaker: np.ndarray,
    pronunciations: Pronunciations,
) -> None:
    """Writes config.json and weights.safetensors (float16) for `Taste.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    params = dict(params)
    params["quantizer"] = {k: v for k, v in params["quantizer"].items() if k == "codebooks"}
    flat = {name: np.asarray(value, np.float16) for name, value in flatten(params).items()}
    save_file(
        flat | {"default_speaker": default_speaker.astype(np.float16)},
        folder / WEIGHTS,
    )
    data = dataclasses.asdict(config) | {DICTIONARY: identify_pronunciations(pronunciations)}
    text = json.dumps(data, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def taste_config(data: dict[str, Any]) -> TasteConfig:
    """Inverse of `dataclasses.asdict`."""
    vocoder = data["vocoder"] | {"mel": MelConfig(**data["vocoder"]["mel"])}
    return TasteConfig(
        **data
        | {
            "value_layers": tuple(data["value_layers"]),
            "aggregator_layers": tuple(data["aggregator_layers"]),
            "rvq": RvqConfig(**data["rvq"]),
            "fsq": FsqConfig(**data["fsq"] | {"grid": tuple(data["fsq"]["grid"])}),
            "decoder": TasteDecoderConfig(**data["decoder"]),
            "vocoder": VocoderConfig(**vocoder),
        }
    )


def _cut(audio: np.ndarray, words: Sequence[Any]) -> list[tuple[np.ndarray, list[Word]]]:
    """Pieces of at most 29 s, cut between words, with the words' times in the piece."""
    limit = int(_LONGEST * RATE)
    pieces, first, begin = [], 0, 0

    def shifted(some):
        return [Word(w.text, w.start - begin / RATE, w.end - begin / RATE) for w in some]

    while len(audio) - begin > limit:
        fit = [i for i in range(first + 1, len(words)) if words[i].start * RATE - begin <= limit]
        if not fit:
            raise UserError(
                f"a word ends {limit / RATE:.0f} s after the one before it at {begin / RATE:.1f} s",
                "cut the recording at its long pauses first",
            )
        end = int(words[fit[-1]].start * RATE)
        pieces.append((audio[begin:end], shifted(words[first : fit[-1]])))
        first, begin = fit[-1], end
    pieces.append((audio[begin:], shifted(words[first:])))
    return pieces
