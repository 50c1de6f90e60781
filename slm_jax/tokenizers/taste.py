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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from slm_jax.audio.features import MelConfig, log_mel
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import (
    FsqConfig,
    Quantized,
    RvqConfig,
    fsq,
    fsq_codebooks,
    fsq_decode,
    rvq,
    rvq_decode,
    rvq_init,
)
from slm_jax.nn.tree import Params, flatten, load_flat, merge, pure_params
from slm_jax.streams import UTTERANCE, WORD, StreamSpec, fingerprint
from slm_jax.tokenizers.taste_decoder import (
    TasteDecoder,
    TasteDecoderConfig,
    round_durations,
    text_bytes,
    word_times,
)
from slm_jax.tokenizers.taste_encoder import Aggregator, SpeakerEncoder, word_mean
from slm_jax.tokenizers.taste_listen import CONTEXTS, Heard, Listener
from slm_jax.tokenizers.vocoder import Vocoder, VocoderConfig
from slm_jax.tokenizers.whisper import WhisperConfig

STARTER = Path(__file__).resolve().parent.parent / "weights" / "taste"
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
RATE = 16_000
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class TasteConfig:
    """Sizes of the starter; `gin/taste_paper.gin` has the paper's.

    Attributes:
      value_layer: Whisper encoder layers below the aggregator's values.
      aggregator_layers: which Whisper decoder layers the aggregator starts from.
      pooling: a word's latent is the "mean" of its tokens' (the paper's), or that of its "last".
      quantizer: "rvq" or "fsq"; the config of that name counts.
      speaker_width: of the utterance's speaker vector.
    """

    value_layer: int = 2
    aggregator_layers: tuple[int, ...] = (0, 3)
    pooling: Literal["mean", "last"] = "mean"
    quantizer: Literal["rvq", "fsq"] = "rvq"
    rvq: RvqConfig = RvqConfig(levels=4, codes=64, width=64)
    fsq: FsqConfig = FsqConfig(levels=4, grid=(4, 4, 4))
    speaker_width: int = 32
    decoder: TasteDecoderConfig = TasteDecoderConfig()
    vocoder: VocoderConfig = VocoderConfig()

    def __post_init__(self):
        if not self.aggregator_layers or self.value_layer < 0 or self.speaker_width < 1:
            raise ValueError("TasteConfig: aggregator_layers, value_layer or speaker_width")

    @property
    def latent(self) -> int:
        return self.rvq.width if self.quantizer == "rvq" else self.fsq.width

    @property
    def vocab(self) -> tuple[int, ...]:
        return self.rvq.vocab if self.quantizer == "rvq" else self.fsq.vocab


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


class TasteNetwork:
    """The trainable parts as pure functions of one parameter tree
    {"aggregator", "speaker", "decoder", "vocoder", "quantizer"}."""

    def __init__(self, config: TasteConfig, whisper: WhisperConfig):
        self.config = config
        parts = nnx.eval_shape(lambda: self._modules(config, whisper, nnx.Rngs(0)))
        self._graphs = {name: pure_params(part)[0] for name, part in parts.items()}
        self._whisper = whisper

    @staticmethod
    def _modules(config: TasteConfig, whisper: WhisperConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        mel = config.vocoder.mel
        layers = len(config.aggregator_layers)
        return {
            "aggregator": Aggregator(whisper, layers, config.latent, rngs=rngs),
            "speaker": SpeakerEncoder(whisper.width, config.speaker_width, rngs=rngs),
            "decoder": TasteDecoder(
                config.decoder, mel, config.latent, config.speaker_width, rngs=rngs
            ),
            "vocoder": Vocoder(config.vocoder, rngs=rngs),
        }

    def init(self, seed: int) -> Params:
        """Random parameters, and empty codebooks."""
        modules = self._modules(self.config, self._whisper, nnx.Rngs(seed))
        params = {name: pure_params(module)[1] for name, module in modules.items()}
        quantizer = rvq_init(self.config.rvq) if self.config.quantizer == "rvq" else {}
        return params | {"quantizer": quantizer}

    def part(self, params: Params, name: str) -> Any:
        """One module with its parameters, for use inside jit."""
        return merge(self._graphs[name], params[name])

    def latents(self, params: Params, batch: dict[str, jax.Array], words: int) -> jax.Array:
        """[B, W, latent] before quantisation; see `pad_heard` for the batch."""
        tokens = self.part(params, "aggregator")(
            batch["tokens"], batch["keys"], batch["values"], batch["audio_mask"]
        )
        index = batch["token_words"]
        if self.config.pooling == "last":
            following = jnp.pad(index[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
            index = jnp.where(index == following, -1, index)
        return word_mean(tokens, index, words)

    def speaker(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """[B, speaker_width]."""
        return self.part(params, "speaker")(batch["values"], batch["audio_mask"])

    def quantize(
        self, params: Params, latents: jax.Array, mask: jax.Array, used: jax.Array | int
    ) -> Quantized:
        """Straight-through; see `slm_jax.nn.quantizers`."""
        if self.config.quantizer == "fsq":
            return fsq(self.config.fsq, latents)
        return rvq(params["quantizer"]["codebooks"], latents, mask, used)

    def dequantize(self, params: Params, codes: jax.Array) -> jax.Array:
        """codes [..., K] -> latents [..., latent]."""
        if self.config.quantizer == "fsq":
            return fsq_decode(self.config.fsq, codes)
        return rvq_decode(params["quantizer"]["codebooks"], codes)


def pad_heard(
    heard: Sequence[Heard], listener: Listener, rows: int, frames: int, tokens: int
) -> dict[str, np.ndarray]:
    """A batch of the aggregator's inputs, zero padded to [rows, frames | tokens, ...]."""
    width = heard[0].keys.shape[1]
    keys = np.zeros((rows, frames, width), np.float32)
    values = np.zeros_like(keys)
    audio_mask = np.zeros((rows, frames), np.float32)
    ids = np.full((rows, tokens), listener.text.end, np.int32)
    token_words = np.full((rows, tokens), -1, np.int32)
    for row, h in enumerate(heard):
        keys[row, : len(h.keys)], values[row, : len(h.values)] = h.keys, h.values
        audio_mask[row, : len(h.keys)] = 1
        ids[row, : len(h.tokens)], token_words[row, : len(h.tokens)] = h.tokens, h.token_words
    return {
        "keys": keys,
        "values": values,
        "audio_mask": audio_mask,
        "tokens": listener.embed(ids),
        "token_words": token_words,
    }


class Taste:
    """Encode and decode with trained weights; `Taste.load` reads them.

    Attributes:
      spec, speaker_spec: the two streams it makes.
      default_speaker: float32 [speaker_width], the starter's voice.
      codebook_latents: float32 [K, V, latent]; the sum of one vector a level is a word's latent.
      vocoder_lookahead, frame_lookahead: seconds of future that decoding needs, by part.
      text_lookahead: bytes of future text that decoding needs.
    """

    def __init__(
        self,
        config: TasteConfig,
        params: Params,
        default_speaker: np.ndarray,
        whisper: Path | str,
        identity: str,
    ):
        self.config = config
        self.default_speaker = default_speaker
        self._listener = Listener(whisper, config.value_layer)
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
            "taste", "codes", WORD, vocab=config.vocab, fingerprint=identity, lookahead=1.0
        )
        self.speaker_spec = StreamSpec(
            "speaker", "continuous", UTTERANCE, width=config.speaker_width, fingerprint=identity
        )
        self._encode = jax.jit(self._encode_batch, static_argnames="words")
        self._read = jax.jit(self._read_batch)
        self._write = jax.jit(self._write_batch, static_argnames="frames")
        self._vocode = jax.jit(self._vocode_batch)

    @classmethod
    def load(cls, whisper: Path | str, path: Path | str | None = None) -> Taste:
        """Reads a tokenizer folder (config.json, weights.safetensors), by default the starter.

        Args:
          whisper: folder of the Whisper whose features it was trained on.
          path: the folder.

        Raises:
          UserError: a file is missing or does not fit.
        """
        folder, identity = _identify(path)
        config = taste_config(json.loads((folder / CONFIG).read_text()))
        weights_file = folder / WEIGHTS
        try:
            flat = load_file(weights_file)
        except Exception as error:  # safetensors raises its own bare exception
            raise UserError(f"{weights_file} is damaged: {error}", "restore the file") from error
        default_speaker = flat.pop("default_speaker").astype(np.float32)
        listener_config = Listener(whisper, config.value_layer).config
        network = TasteNetwork(config, listener_config)
        target = jax.eval_shape(lambda: network.init(0))
        target["quantizer"].pop("counts", None)
        target["quantizer"].pop("sums", None)
        params = load_flat(target, {k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})
        return cls(config, params, default_speaker, whisper, identity)

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
          words: of each, with `text`, `start` and `end` (seconds). Times only decide where audio
            beyond 29 s is cut.

        Returns:
          codes: int32 [W, K] for each.
          speakers: float32 [speaker_width] for each, of unit length.
        """
        pieces = [_cut(audio, spoken) for audio, spoken in zip(audios, words, strict=True)]
        flat = [piece for utterance in pieces for piece in utterance]
        codes, speakers = self._encode_short([a for a, _ in flat], [w for _, w in flat])
        all_codes, all_speakers, at = [], [], 0
        for utterance in pieces:
            here = slice(at, at + len(utterance))
            at += len(utterance)
            all_codes.append(np.concatenate(codes[here]))
            mean = np.mean(speakers[here], axis=0)
            all_speakers.append((mean / np.linalg.norm(mean)).astype(np.float32))
        return all_codes, all_speakers

    def _encode_short(self, audios, words):
        heard = self._listener.hear(audios, words)
        codes: list[Any] = [None] * len(audios)
        speakers: list[Any] = [None] * len(audios)
        order = sorted(range(len(audios)), key=lambda i: len(audios[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            chunk = [heard[i] for i in rows]
            frames = _bucket(max(len(h.keys) for h in chunk), 200)
            tokens = _bucket(max(len(h.tokens) for h in chunk), 32)
            batch = pad_heard(chunk, self._listener, _BATCH, frames, tokens)
            count = _bucket(max(len(words[i]) for i in rows), 16)
            found, voices = jax.device_get(self._encode(self._params, batch, words=count))
            for row, i in enumerate(rows):
                codes[i], speakers[i] = found[row, : len(words[i])], voices[row]
        return codes, speakers

    def _encode_batch(self, params, batch, *, words):
        latents = self._network.latents(params, batch, words)
        codes = self._network.quantize(params, latents, jnp.ones(latents.shape[:2]), 1).codes
        return codes, self._network.speaker(params, batch)

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
          ValueError: an utterance without words, or codes of another shape or range.
        """
        told = float(codes is not None)
        if codes is None:
            codes = [np.zeros((len(row), len(self.config.vocab)), np.int32) for row in words]
        for spoken, ids in zip(words, codes, strict=True):
            wanted = (len(spoken), len(self.config.vocab))
            if not spoken or np.shape(ids) != wanted:
                raise ValueError(f"codes of shape {np.shape(ids)} for {wanted[0]} words")
            if np.min(ids) < 0 or np.any(np.max(ids, axis=0) >= self.config.vocab):
                raise ValueError(f"codes outside the vocabulary {self.config.vocab}")
        texts = [text_bytes(spoken) for spoken in words]
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
        """Mono 16 kHz audio through its own mels and the vocoder alone: the decoder's ceiling."""
        mel_config = self.config.vocoder.mel
        padded = np.pad(audio, (0, -len(audio) % (64 * mel_config.hop)))
        out = self._vocode(self._params, log_mel(jnp.asarray(padded)[None], mel_config))
        return np.asarray(out)[0, : len(audio)]

    def _speak(self, texts, codes, speakers, told):
        length = _bucket(max(len(t.ids) for t in texts), 64)
        count = _bucket(max(len(c) for c in codes), 16)
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
        audio = self._write(self._params, hidden, durations, frames=_bucket(frames.max() + 1, 128))
        hop = self.config.vocoder.mel.hop
        audio = np.asarray(audio)
        return [(audio[row, : frames[row] * hop], durations[row]) for row in range(len(texts))]

    def _read_batch(self, params, ids, index, codes, speakers, told):
        latents = self._network.dequantize(params, codes) * told
        state = self._network.part(params, "decoder").read(ids, index, latents, speakers)
        return state.hidden, round_durations(state.log_durations, ids)

    def _write_batch(self, params, hidden, durations, *, frames):
        mel = self._network.part(params, "decoder").mels(hidden, durations, frames)
        return self._vocode_batch(params, mel)

    def _vocode_batch(self, params, mel):
        return jnp.clip(self._network.part(params, "vocoder")(mel), -1, 1)


def save_taste(
    folder: Path, config: TasteConfig, params: Params, default_speaker: np.ndarray
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
    text = json.dumps(dataclasses.asdict(config), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def taste_config(data: dict[str, Any]) -> TasteConfig:
    """Inverse of `dataclasses.asdict`."""
    vocoder = data["vocoder"] | {"mel": MelConfig(**data["vocoder"]["mel"])}
    return TasteConfig(
        **data
        | {
            "aggregator_layers": tuple(data["aggregator_layers"]),
            "rvq": RvqConfig(**data["rvq"]),
            "fsq": FsqConfig(**data["fsq"] | {"grid": tuple(data["fsq"]["grid"])}),
            "decoder": TasteDecoderConfig(**data["decoder"]),
            "vocoder": VocoderConfig(**vocoder),
        }
    )


def _bucket(size: int, step: int) -> int:
    """The next multiple of `step`: few shapes, few compilations."""
    return int(-(-size // step) * step)


def _cut(audio: np.ndarray, words: Sequence[Any]) -> list[tuple[np.ndarray, list[str]]]:
    """Pieces of at most 29 s, cut between words."""
    limit = (CONTEXTS[-1] - 1) * RATE
    pieces, first, begin = [], 0, 0
    while len(audio) - begin > limit:
        fit = [i for i in range(first + 1, len(words)) if words[i].start * RATE - begin <= limit]
        if not fit:
            raise UserError(
                f"a word ends {limit / RATE:.0f} s after the one before it at {begin / RATE:.1f} s",
                "cut the recording at its long pauses first",
            )
        end = int(words[fit[-1]].start * RATE)
        pieces.append((audio[begin:end], [w.text for w in words[first : fit[-1]]]))
        first, begin = fit[-1], end
    pieces.append((audio[begin:], [w.text for w in words[first:]]))
    return pieces
