"""Supervised units: codes from within an ASR's encoder, trained so that its decoder still reads.

As the S3 tokenizers of CosyVoice (Du et al. 2024, arXiv 2407.05407; with finite scalar
quantisation, 3^8 codes at 25 Hz, in CosyVoice 2, arXiv 2412.10117) and the tokenizer of GLM-4-Voice
(Zeng et al. 2024, arXiv 2412.02612: a Whisper, pooled to 12.5 Hz, with a codebook). The network is
in `asr_units_network`.

Whisper's encoder looks both ways, so recordings are heard in windows, by rule (`chunked`); what
lasts no longer than the first, 14 s, is heard whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError
from slm_jax.nn.quantizers import FsqConfig, fsq_decode
from slm_jax.nn.tree import Params, load_flat, merge, pure_params
from slm_jax.streams import StreamSpec, fingerprint
from slm_jax.tokenizers.asr import greedy
from slm_jax.tokenizers.asr_units_network import (
    FRAME_RATE,
    RATE,
    AsrUnitsConfig,
    AsrUnitsNetwork,
    identify,
    whisper_weights,
)
from slm_jax.tokenizers.checks import check_codes, check_rows, mono
from slm_jax.tokenizers.chunked import Window, WindowStream
from slm_jax.tokenizers.tokenizer import stack
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.tokenizers.whisper_text import WhisperText

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
_REMEDY = "train some: python launch/train_asr_units.py --gin_file=asr_units.gin"


class AsrUnits:
    """Audio to codes, and codes to what was said: a `Tokenizer`, but for `read` in the place of
    `decode`.

    Attributes:
      spec: the stream.
    """

    sample_rate, delay = RATE, 0

    def __init__(
        self, config: AsrUnitsConfig, network: AsrUnitsNetwork, text: WhisperText, identity: str
    ):
        self.config = config
        self._window = Window(12 * RATE, 2 * RATE, 2 * RATE, 12 * RATE // config.hop)
        self.spec = StreamSpec(
            "asr-units",
            "codes",
            FRAME_RATE / config.pool,
            vocab=config.fsq.vocab,
            fingerprint=identity,
            lookahead=(self._window.step + self._window.after - config.hop) / RATE,
        )
        self._text = text
        self._graphdef, self._params = pure_params(network)
        self._quantise = jax.jit(self._quantise_one)
        self._hear = jax.jit(self._hear_one)

    @classmethod
    def load(cls, whisper: Path | str, path: Path | str) -> AsrUnits:
        """Reads what `save_asr_units` wrote.

        Args:
          whisper: folder of the Whisper that it was trained in.
          path: the folder written.

        Raises:
          UserError: a file is missing or damaged, they do not fit, or it is another Whisper.
        """
        folder = Path(path)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).exists():
                raise UserError(f"no ASR units in {folder}: {name} is missing", _REMEDY)
        config = _read_config(folder / CONFIG)
        loaded = Whisper.load(whisper)
        if identify(loaded) != config.whisper:
            raise UserError(
                f"{folder} was trained in a Whisper with other weights than {whisper}",
                f"give the one that it was trained in, or {_REMEDY}",
            )
        try:
            flat = load_file(folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own bare exception
            raise UserError(f"{folder / WEIGHTS} is damaged: {error}", "restore it") from error
        trained = {name: array.astype(np.float32) for name, array in flat.items()}
        kept = {
            name: array
            for name, array in whisper_weights(config, loaded).items()
            if name.startswith(("below/", "decoder/"))
        }
        graphdef, abstract = pure_params(
            nnx.eval_shape(lambda: AsrUnitsNetwork(config, loaded.config, rngs=nnx.Rngs(0)))
        )
        params = jax.tree.map(jnp.asarray, load_flat(abstract, kept | trained))
        settings = dataclasses.asdict(config)
        identity = fingerprint(
            "asr-units-1", settings, *(trained[name].tobytes() for name in sorted(trained))
        )
        text = WhisperText(whisper, loaded.config.vocab_size)
        return cls(config, merge(graphdef, params), text, identity)

    def encode(self, audio: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes recordings. Each goes through the network by itself, padded by its own length
        alone: what else is in the batch changes nothing.

        Args:
          audio: float32 [B, n], mono at 16 kHz.
          lengths: int [B], samples of each row.

        Returns:
          codes: int32 [B, T, K]; 0 beyond a row's frames.
          frames: int32 [B].

        Raises:
          ValueError, UserError: of `check_rows`.
        """
        check_rows(audio, lengths)
        rows = []
        for row, length in zip(np.asarray(audio), lengths, strict=True):
            stream = self.stream()
            rows.append(np.concatenate(stream.push(row[:length]) + stream.finish()))
        return stack(rows, np.int32)

    def stream(self) -> WindowStream:
        """Codes of a recording as it arrives: float32 [n] -> int32 [t, K]."""
        return WindowStream(self._codes, self._window)

    def read(self, codes: np.ndarray, frames: np.ndarray, language: str = "en") -> list[str]:
        """What codes int [B, T, K] of int [B] frames say, by Whisper's decoder: its likeliest id at
        each step.

        Raises:
          ValueError: of `check_codes`.
          UserError: a row of more than 29 s, or a language that this Whisper does not know.
        """
        check_codes(codes, frames, self.spec.vocab, self.spec.levels)
        prompt, texts = self._text.prompt(language), []
        for row, count in zip(np.asarray(codes), frames, strict=True):
            alone = np.zeros((1, self.config.context(count), self.spec.levels), np.int32)
            alone[0, :count] = row[:count]
            heard = self._hear(self._params, alone, np.array([count]))
            idle = np.zeros(1, bool)
            ids = greedy(self._graphdef, self._params, heard, idle, prompt, self._text.end)
            texts.append(self._text.decode(np.asarray(ids)[0].tolist()))
        return texts

    def _codes(self, piece: np.ndarray, _: int) -> np.ndarray:
        count = self.config.frames(len(piece))
        length = min(self.config.context(count) * self.config.hop, self._window.length)
        padded = np.pad(mono(piece), (0, length - len(piece)))
        return np.asarray(self._quantise(self._params, padded[None]))[0, :count]

    def _quantise_one(self, params: Params, audio: jax.Array) -> jax.Array:
        # Rounding products to TF32 or bfloat16 would make other codes on other machines.
        with jax.default_matmul_precision("highest"):
            return merge(self._graphdef, params).quantise(audio).codes

    def _hear_one(self, params: Params, codes: jax.Array, frames: jax.Array) -> jax.Array:
        latents = fsq_decode(self.config.fsq, codes)
        return merge(self._graphdef, params).hear(latents, frames)


def save_asr_units(folder: Path, config: AsrUnitsConfig, trained: Mapping[str, jax.Array]) -> None:
    """Writes config.json and weights.safetensors (float16, path -> array of what was trained) for
    `AsrUnits.load`."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: np.asarray(value, np.float16) for name, value in trained.items()}
    save_file(flat, folder / WEIGHTS)
    text = json.dumps(dataclasses.asdict(config), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _read_config(path: Path) -> AsrUnitsConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        grid = {"grid": tuple(data["fsq"]["grid"])}
        return AsrUnitsConfig(**data | {"fsq": FsqConfig(**data["fsq"] | grid)})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the configuration of ASR units: {error!r}", _REMEDY
        ) from error
