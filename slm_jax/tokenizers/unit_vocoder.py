"""Units back to speech: durations, mels and pitch from units and a speaker vector, then a vocoder.

The place of the unit HiFi-GAN with duration prediction (Polyak et al. 2021, arXiv 2104.00355 §3;
reference class `CodeGenerator` of speech-resynthesis), but with mels and pitch in between, so that
the vocoder can be trained on any speech.

Units come at 50 Hz, mel frames at the hop of `VocoderConfig.mel`. Frame t, whose middle is sample
t * hop, takes the unit in whose fiftieth of a second that sample lies, floor(t * hop * 50 / rate),
and is told how far into it; with 16 ms frames that is unit floor(4 t / 5), so every fourth unit
speaks for two frames. Encoders hear a unit up to 10 ms off that interval, always by as much: the
stack over frames learns it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file, save_file

from slm_jax.audio.features import MelConfig, log_envelope
from slm_jax.audio.pitch import PitchConfig, pitch
from slm_jax.errors import UserError
from slm_jax.nn.conv import ConvNeXt
from slm_jax.nn.flow import euler
from slm_jax.nn.layers import Embedding, LayerNorm, Linear
from slm_jax.nn.tree import Params, flatten, load_flat, merge, pure_params
from slm_jax.tokenizers.checks import check_duration, check_vectors, mono
from slm_jax.tokenizers.flow_matching import FlowConfig, Velocity, guided
from slm_jax.tokenizers.taste_decoder import Frames, pick, round_durations
from slm_jax.tokenizers.taste_encoder import SpeakerEncoder
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.units import repeat
from slm_jax.tokenizers.vocoder import (
    Vocoder,
    VocoderConfig,
    denormalise_mel,
    denormalise_pitch,
    fill_pitch,
    normalise_mel,
    normalise_pitch,
)

UNIT_RATE = 50  # units a second
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
_REMEDY = "train one: python launch/train_unit_vocoder.py --gin_file=unit_vocoder.gin"
_LONGEST = 3600.0  # seconds that are spoken at once
_VOICE = 300  # seconds from which a speaker vector is made
_SILENCE = math.log(1e-5)  # log-mel of digital silence
Count = TypeVar("Count", int, np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class UnitVocoderConfig:
    """Sizes; the default has 8 M parameters, 12 M with "flow".

    Attributes:
      kmeans: fingerprint of the units that it speaks, by a k-means or an ASR; training fills it in.
      units: how many of them there are; training fills it in.
      mels: "regression" writes the mean of what they may be, "flow" draws them
        (`flow_matching`); pitch, voicing and durations are regressed in both cases.
      width, mlp: of the stacks below.
      duration_layers: over units without repeats, for the durations.
      unit_layers, frame_layers: over units at 50 Hz, and over mel frames.
      speaker_width: of speaker vectors.
      flow: of "flow".
      vocoder: mels and pitch to the waveform.
    """

    kmeans: str = ""
    units: int = 500
    mels: Literal["regression", "flow"] = "regression"
    width: int = 256
    mlp: int = 768
    duration_layers: int = 3
    unit_layers: int = 5
    frame_layers: int = 5
    speaker_width: int = 24
    flow: FlowConfig = FlowConfig()
    vocoder: VocoderConfig = VocoderConfig()

    def __post_init__(self):
        layers = (self.duration_layers, self.unit_layers, self.frame_layers)
        if min(self.units, self.width, self.mlp, self.speaker_width, *layers) < 1:
            raise ValueError("UnitVocoderConfig: all sizes must be positive")
        if self.mels not in ("regression", "flow"):
            raise ValueError(f"UnitVocoderConfig: mels is regression or flow, not {self.mels}")
        if self.vocoder.mel.rate % UNIT_RATE:
            raise ValueError(f"UnitVocoderConfig: mel.rate must be a multiple of {UNIT_RATE}")

    @property
    def samples(self) -> int:
        """Samples of one unit."""
        return self.vocoder.mel.rate // UNIT_RATE

    def mel_frames(self, units: Count) -> Count:
        """Mel frames between which so many units at 50 Hz lie."""
        return -(-units * self.samples // self.vocoder.mel.hop) + 1


class UnitNetwork(nnx.Module):
    """All of it but the way to call it. Units are int, -1 behind the end of a row."""

    def __init__(self, config: UnitVocoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, mlp, mel = config.width, config.mlp, config.vocoder.mel
        self.encoder = SpeakerEncoder(mel.n_mels, config.speaker_width, rngs=rngs)
        normal = jax.nn.initializers.normal(0.5)
        self.table = Embedding(config.units, width, rngs=rngs, init=normal)
        self.speaker = Linear(config.speaker_width, width, rngs=rngs)
        self.runs = ConvNeXt(width, mlp, config.duration_layers, rngs=rngs)
        self.run_norm = LayerNorm(width)
        self.run_out = Linear(width, 1, bias=True, rngs=rngs)
        self.units = ConvNeXt(width, mlp, config.unit_layers, rngs=rngs)
        self.unit_norm = LayerNorm(width)
        self.frame_in = Linear(width + 1, width, bias=True, rngs=rngs)
        self.frames = ConvNeXt(width, mlp, config.frame_layers, rngs=rngs)
        self.frame_norm = LayerNorm(width)
        self.frame_out = Linear(width, mel.n_mels + 2, bias=True, rngs=rngs)
        drawn = config.mels == "flow"
        sizes = (mel.n_mels, width, config.speaker_width)
        self.flow = Velocity(config.flow, *sizes, rngs=rngs) if drawn else None
        self.vocoder = Vocoder(config.vocoder, rngs=rngs)

    def voice(self, heard: Frames, mask: Float[Array, "B F"]) -> Float[Array, "B E"]:
        """The speaker vector, of unit length, of frames that `analyse` found."""
        return self.encoder(heard.mel, mask, heard.pitch, heard.voicing * mask)

    def log_durations(
        self, runs: Int[Array, "B N"], speaker: Float[Array, "B E"]
    ) -> Float[Array, "B N"]:
        """Natural logs of how many fiftieths of a second each unit lasts; `runs` has no repeats."""
        x = self.runs(self._embed(runs, speaker), (runs >= 0).astype(speaker.dtype))
        return self.run_out(self.run_norm(x))[..., 0]

    def durations(self, runs: Int[Array, "B N"], speaker: Float[Array, "B E"]) -> Int[Array, "B N"]:
        """`log_durations` as whole numbers: 1 or more, 0 for padding."""
        return round_durations(self.log_durations(runs, speaker), runs + 1)

    def read(
        self, units: Int[Array, "B T"], lengths: Int[Array, " B"], speaker: Float[Array, "B E"]
    ) -> tuple[Float[Array, "B F D"], Frames, Float[Array, "B F"]]:
        """What units at 50 Hz say of the mel frames.

        Args:
          units: each as often as it lasts.
          lengths: units of each row, 1 or more.
          speaker: vectors of unit length.

        Returns:
          states: of the F = `mel_frames(T)` mel frames.
          frames: the regression's.
          mask: 1 for the `mel_frames(lengths)` frames of each row.
        """
        config, count = self.config, units.shape[1]
        x = self.units(self._embed(units, speaker), (units >= 0).astype(speaker.dtype))
        time = np.arange(config.mel_frames(count)) * config.vocoder.mel.hop
        # The last frames of a row may lie behind its last unit, which then speaks for them too.
        index = jnp.minimum((time // config.samples)[None], lengths[:, None] - 1)
        within = time % config.samples / config.samples
        within = jnp.broadcast_to(within.astype(np.float32), index.shape)[..., None]
        mask = (np.arange(len(time)) < config.mel_frames(lengths)[:, None]).astype(speaker.dtype)
        x = jnp.concatenate([pick(self.unit_norm(x), index), within], axis=-1)
        states = self.frame_norm(self.frames(self.frame_in(x), mask))
        out = self.frame_out(states)
        return states, Frames(out[..., :-2], out[..., -2], out[..., -1]), mask

    def sound(
        self, units: Int[Array, "B T"], lengths: Int[Array, " B"], speaker: Float[Array, "B E"]
    ) -> Float[Array, "B n"]:
        """Units at 50 Hz (see `read`) -> T * `config.samples` samples in [-1, 1], zeros behind the
        end of a row."""
        config = self.config
        states, out, mask = self.read(units, lengths, speaker)
        mel = out.mel
        if self.flow is not None:
            # The same noise in every call and row: what is said depends on the input alone.
            noise = jax.random.normal(jax.random.key(0), mel.shape[1:])
            field = guided(self.flow, states, speaker, mask, config.flow.guidance)
            mel = euler(field, jnp.broadcast_to(noise, mel.shape), config.flow.steps)
        inside = mask > 0
        mel = jnp.where(inside[..., None], denormalise_mel(mel), _SILENCE)
        voiced = ((out.voicing > 0) & inside).astype(mel.dtype)
        hertz = denormalise_pitch(jnp.clip(out.pitch, -2.0, 3.0))
        # Silence as far as the vocoder looks ahead, so that no row's end depends on where the
        # longest row of its batch ends.
        more = ((0, 0), (0, self._margin))
        mel = jnp.pad(mel, (*more, (0, 0)), constant_values=_SILENCE)
        voiced = jnp.pad(voiced, more)
        hertz = jnp.pad(hertz, more, constant_values=100.0)
        audio = self.vocoder(mel, hertz, voiced)[:, : units.shape[1] * config.samples]
        heard = jnp.arange(audio.shape[1]) < lengths[:, None] * config.samples
        return jnp.where(heard, jnp.clip(audio, -1.0, 1.0), 0.0)

    @property
    def _margin(self) -> int:
        mel = self.config.vocoder.mel
        # Filters reach one window further than the vocoder's look-ahead over mels: the source has
        # to be there too.
        return round(self.vocoder.lookahead * mel.rate / mel.hop) + 3

    def _embed(self, units: jax.Array, speaker: jax.Array) -> jax.Array:
        return pick(self.table.embedding[...][None], units) + self.speaker(speaker)[:, None]


class Spoken(NamedTuple):
    """Audio float32 [B, n], and the samples int32 [B] of each row; zeros follow."""

    audio: np.ndarray
    samples: np.ndarray


class UnitVocoder:
    """The detokenizer with its weights, batched; a row gives what it gives alone.

    Attributes:
      config: what it is.
      sample_rate: of the audio, in Hz.
    """

    def __init__(self, config: UnitVocoderConfig, params: Params):
        self.config, self.sample_rate = config, config.vocoder.mel.rate
        self._params = params
        graphdef, _ = pure_params(_abstract(config))
        self._durations = jax.jit(lambda params, *args: merge(graphdef, params).durations(*args))
        self._sound = jax.jit(lambda params, *args: merge(graphdef, params).sound(*args))
        self._voice = jax.jit(lambda params, *args: merge(graphdef, params).voice(*args))

    def decode(
        self, units: np.ndarray, durations: np.ndarray | None, speaker: np.ndarray
    ) -> Spoken:
        """Speaks rows of units.

        Args:
          units: int [B, N], -1 behind the end of a row.
          durations: int [B, N] in fiftieths of a second; ones for units that were not deduplicated.
            Whether one long or several short equal units say it is the same. If None they are
            predicted, for units without repeats (`deduplicate`).
          speaker: float [B, E], vectors of unit length (`speaker`).

        Raises:
          ValueError: shapes do not fit, a unit that the k-means does not have, a negative
            duration, or a speaker that is not finite.
          UserError: more than an hour in a row.
        """
        units = np.asarray(units)
        if units.ndim != 2 or units.dtype.kind not in "iu":
            raise ValueError(f"units are {units.dtype}{list(units.shape)}, wanted int [B, N]")
        check_vectors("speakers", speaker, len(units), self.config.speaker_width)
        speaker = np.asarray(speaker, np.float32)
        if units.size and not -1 <= units.min() <= units.max() < self.config.units:
            raise ValueError(f"units lie in [0, {self.config.units}), and -1 is padding")
        if durations is None:
            known = _filled(units, bucket(max(units.shape[1], 1), 32))
            durations = np.asarray(self._durations(self._params, known, speaker))
            durations = durations[:, : units.shape[1]]
        durations = np.asarray(durations)
        if durations.shape != units.shape:
            raise ValueError(f"durations {durations.shape} of units {units.shape}")
        longest = np.where(units >= 0, durations, 0).sum(axis=1, dtype=np.float64).max(initial=0)
        check_duration(longest / UNIT_RATE, _LONGEST, "speak it in parts")
        rows = [repeat(u[u >= 0], d[u >= 0]) for u, d in zip(units, durations, strict=True)]
        lengths = np.array([len(row) for row in rows], np.int32)
        longest = int(lengths.max(initial=0))
        # Shapes of a few kinds only, because each is compiled.
        said = np.stack([_filled(row, bucket(max(longest, 1), UNIT_RATE)) for row in rows])
        audio = self._sound(self._params, said, np.maximum(lengths, 1), speaker)
        samples = lengths * self.config.samples
        audio = np.array(audio)[:, : longest * self.config.samples]
        audio[lengths == 0] = 0.0
        return Spoken(audio, samples)

    def speaker(self, audio: np.ndarray) -> np.ndarray:
        """The speaker vector, float32 [E], of mono audio [n] at `sample_rate`; of its first five
        minutes.

        Raises:
          ValueError: not a vector of floats.
          UserError: samples that are not finite or far too loud.
        """
        audio = mono(audio)[: _VOICE * self.sample_rate]
        heard, mask = padded_frames(analyse_one(audio, self.config.vocoder.mel))
        return np.asarray(self._voice(self._params, heard, mask)[0])

    def save(self, folder: Path | str) -> None:
        """Writes config.json and weights.safetensors (float16) for `load`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        flat = flatten(self._params)
        save_file({k: np.asarray(v, np.float16) for k, v in flat.items()}, folder / WEIGHTS)
        text = json.dumps(dataclasses.asdict(self.config), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, kmeans: str) -> UnitVocoder:
        """Reads what `save` wrote.

        Args:
          folder: where it is.
          kmeans: fingerprint of the units.

        Raises:
          UserError: a file is missing or damaged, they do not fit, or the vocoder was trained for
            other units.
        """
        folder = Path(folder)
        config = _read_config(folder)
        if config.kmeans != kmeans:
            raise UserError(
                f"{folder} speaks the units {config.kmeans}, not {kmeans}",
                f"take the units that it was trained for, or {_REMEDY}",
            )
        try:
            flat = load_file(folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own bare exception
            raise UserError(f"{folder / WEIGHTS} is damaged: {error}", "restore it") from error
        weights = {name: array.astype(np.float32) for name, array in flat.items()}
        params = load_flat(pure_params(_abstract(config))[1], weights)
        return cls(config, jax.tree.map(jnp.asarray, params))


@functools.partial(jax.jit, static_argnames="mel")
def analyse(audio: Float[Array, "B n"], mel: MelConfig) -> Frames:
    """Log-envelope mels and pitch, both normalised, and voicing, 0 or 1; 1 + n // hop frames."""
    hertz, voiced = pitch(audio, PitchConfig(rate=mel.rate, hop=mel.hop))
    voiced = voiced.astype(jnp.float32)
    hertz = fill_pitch(hertz, voiced)
    return Frames(normalise_mel(log_envelope(audio, hertz, mel)), normalise_pitch(hertz), voiced)


def analyse_one(audio: np.ndarray, mel: MelConfig) -> Frames:
    """`analyse` of audio [n], as numpy arrays without the batch axis. The padding depends on the
    length alone, to whole seconds: few compilations."""
    padded = np.pad(audio.astype(np.float32), (0, bucket(len(audio) + 1, mel.rate) - len(audio)))
    count = 1 + len(audio) // mel.hop
    return Frames(*(np.asarray(part)[0, :count] for part in analyse(padded[None], mel)))


def padded_frames(heard: Frames) -> tuple[Frames, np.ndarray]:
    """Frames [F, ...] -> the same as a batch of one, a multiple of 64 frames, and its mask."""
    more = -len(heard.pitch) % 64
    rows = (np.pad(part, ((0, more),) + ((0, 0),) * (part.ndim - 1))[None] for part in heard)
    mask = np.pad(np.ones(len(heard.pitch), np.float32), (0, more))[None]
    return Frames(*rows), mask


def _filled(units: np.ndarray, count: int) -> np.ndarray:
    """int [..., n] -> int32 [..., count], -1 behind the end."""
    more = ((0, 0),) * (units.ndim - 1) + ((0, count - units.shape[-1]),)
    return np.pad(units.astype(np.int32), more, constant_values=-1)


def _abstract(config: UnitVocoderConfig) -> UnitNetwork:
    return nnx.eval_shape(lambda: UnitNetwork(config, rngs=nnx.Rngs(0)))


def spoken_by(folder: Path) -> str:
    """The fingerprint of the units that the unit vocoder of a folder speaks.

    Raises:
      UserError: there is none.
    """
    return _read_config(folder).kmeans


def _read_config(folder: Path) -> UnitVocoderConfig:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise UserError(f"no unit vocoder in {folder}: {name} is missing", _REMEDY)
    path = folder / CONFIG
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        vocoder = data["vocoder"] | {"mel": MelConfig(**data["vocoder"]["mel"])}
        parts = {"vocoder": VocoderConfig(**vocoder), "flow": FlowConfig(**data["flow"])}
        return UnitVocoderConfig(**data | parts)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the configuration of a unit vocoder: {error!r}", _REMEDY
        ) from error
