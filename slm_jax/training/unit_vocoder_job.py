"""The unit vocoder's recipe: the vocoder on real mels, then units to durations, mels and pitch.

The speaker vector is not looked up but heard: TASTE's `SpeakerEncoder` pools the mels and the
pitch of the utterance itself and learns along. Its few numbers, statistics of the whole utterance,
leave little room for what is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from slm_jax.audio.decode import load
from slm_jax.audio.features import MelConfig
from slm_jax.data.schema import AUDIO, AUDIO_RATE, Record
from slm_jax.errors import UserError
from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.flow_matching import conditioned, flow_loss, forgotten
from slm_jax.tokenizers.spoken_units import Units, fiftieths
from slm_jax.tokenizers.taste_decoder import Frames
from slm_jax.tokenizers.unit_vocoder import (
    UNIT_RATE,
    UnitNetwork,
    UnitVocoder,
    UnitVocoderConfig,
    analyse_one,
)
from slm_jax.tokenizers.units import deduplicate
from slm_jax.tokenizers.vocoder import denormalise_pitch
from slm_jax.training.fit import FitConfig, fit
from slm_jax.training.taste_examples import draws
from slm_jax.training.vocoder_job import VocoderTraining, Voiced, train_vocoder

LENGTHS = (150, 300, 500, 750)  # padded lengths in units; one compilation each
_WEIGHTS = {"pitch": 0.5, "voicing": 0.2, "duration": 0.5}  # of losses; the others have 1
_JUDGED = 4  # batches of held-out utterances


@dataclasses.dataclass(frozen=True)
class UnitVocoderTraining:
    """Steps and rates of everything but the vocoder.

    Attributes:
      fit: the stage.
      batch: utterances a step.
      peak_lr: of a cosine.
      forgotten: share of the utterances whose mels "flow" learns to draw from nothing, for its
        guidance.
    """

    fit: FitConfig = FitConfig(steps=8000)
    batch: int = 8
    peak_lr: float = 1e-3
    forgotten: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class UnitVocoderJob:
    """Root of `gin/unit_vocoder.gin`.

    Attributes:
      units: folder of the units to speak (`UnitTokenizer`, `AsrUnits`), "" for the starter's.
      whisper: that supervised units were trained in: a folder, or the name of a fetched one.
      name, runs: the run's directory is runs/name.
      datasets: names or folders of datasets with "audio"; their train splits are used, a dataset
        named n times n times as often.
      model, vocoder, training: sizes and schedules.
    """

    units: str = ""
    whisper: str = "whisper_tiny_en"
    name: str = "unit_vocoder"
    runs: str = "runs"
    datasets: tuple[str, ...] = ("prompts",)
    model: UnitVocoderConfig = UnitVocoderConfig()
    vocoder: VocoderTraining = VocoderTraining()
    training: UnitVocoderTraining = UnitVocoderTraining()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


class Example(NamedTuple):
    """One utterance: units int32 [T] at 50 Hz; F frames of its mels, pitch (normalised, float16)
    and voicing; float16 samples."""

    units: np.ndarray
    heard: Frames
    audio: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.heard.pitch)


def train(
    job: UnitVocoderJob, records: Sequence[Record], held_out: Sequence[Record], units: Units
) -> Path:
    """Runs (or resumes) the recipe; returns the folder of the finished unit vocoder.

    Args:
      job: the recipe.
      records, held_out: joined records with "audio", to learn from and to judge checkpoints by.
      units: those of `job.units`.

    Raises:
      UserError: no recording has a length that is trained on, the units have several levels, or the
        vocoder is not for 16 kHz.
    """
    spec = units.spec
    if spec.levels != 1:
        raise UserError(
            f"a unit vocoder speaks units of one level, these have {spec.levels}",
            "train supervised units with FsqConfig.levels = 1",
        )
    model = dataclasses.replace(job.model, kmeans=spec.fingerprint, units=spec.vocab[0])
    mel = model.vocoder.mel
    if mel.rate != AUDIO_RATE:
        raise UserError(
            f"datasets hold audio at {AUDIO_RATE} Hz, the vocoder is for {mel.rate}",
            f"set MelConfig.rate to {AUDIO_RATE}",
        )
    examples, judged = (
        make_examples(units, [load(record[AUDIO].flac) for record in some], mel)
        for some in (records, held_out)
    )
    longest = LENGTHS[-1] // UNIT_RATE
    print(f"{len(examples)} of {len(records)} recordings last {longest} s or less", flush=True)
    if not examples:
        raise UserError(
            f"no recording of {', '.join(job.datasets)} can be trained on",
            f"give some of at most {longest} s",
        )
    vocoder = train_vocoder(job.run_dir, [_voiced(e) for e in examples], model.vocoder, job.vocoder)
    params = _learn_units(job.run_dir, model, job.training, vocoder, examples, judged)
    folder = job.run_dir / "unit_vocoder"
    UnitVocoder(model, params).save(folder)
    return folder


def make_examples(units: Units, audios: Sequence[np.ndarray], mel: MelConfig) -> list[Example]:
    """Examples of mono 16 kHz audio [n] each; those longer than `LENGTHS` allow, or too short for a
    unit, are left out."""
    fit = [a for a in audios if len(a) * UNIT_RATE <= LENGTHS[-1] * AUDIO_RATE]
    examples = []
    for count, audio in enumerate(fit, 1):
        said = fiftieths(units, audio)
        if len(said):
            heard = Frames(*(part.astype(np.float16) for part in analyse_one(audio, mel)))
            examples.append(Example(said, heard, audio.astype(np.float16)))
        if count % 500 == 0:
            print(f"{count} of {len(fit)} recordings made into examples", flush=True)
    return examples


def collate(examples: Sequence[Example], model: UnitVocoderConfig) -> dict[str, np.ndarray]:
    """Pads to the smallest of `LENGTHS` that holds all.

    Returns:
      units, runs: int32 [B, T], with and without repeats, -1 behind the end.
      durations: int32 [B, T] of the runs.
      lengths: int32 [B], units of each row.
      mel [B, F, n_mels], pitch, voiced, mask: float32 [B, F], F = `model.mel_frames(T)`; mask is 1
        for the frames that a row's units and audio both have.
    """
    rows, longest = len(examples), max(len(e.units) for e in examples)
    count = next(length for length in LENGTHS if length >= longest)
    frames = model.mel_frames(count)
    batch = {
        "units": np.full((rows, count), -1, np.int32),
        "runs": np.full((rows, count), -1, np.int32),
        "durations": np.zeros((rows, count), np.int32),
        "lengths": np.array([len(e.units) for e in examples], np.int32),
        "mel": np.zeros((rows, frames, model.vocoder.mel.n_mels), np.float32),
        "pitch": np.zeros((rows, frames), np.float32),
        "voiced": np.zeros((rows, frames), np.float32),
        "mask": np.zeros((rows, frames), np.float32),
    }
    for row, e in enumerate(examples):
        runs = deduplicate(e.units)
        batch["units"][row, : len(e.units)] = e.units
        batch["runs"][row, : len(runs.units)] = runs.units
        batch["durations"][row, : len(runs.units)] = runs.durations
        both = min(e.frames, model.mel_frames(len(e.units)))
        for name, part in zip(("mel", "pitch", "voiced"), e.heard, strict=True):
            batch[name][row, :both] = part[:both]
        batch["mask"][row, :both] = 1
    return batch


def losses(
    network: UnitNetwork, batch: dict[str, jax.Array], key: jax.Array, share: float
) -> dict[str, jax.Array]:
    """Mean losses of one batch of `collate`: mel, pitch (of voiced frames), voicing, duration (of
    logs, as in Polyak et al. 2021), and with "flow" that of its velocity.

    With "flow" the regression of mels stays, as Matcha-TTS keeps the encoder's prior loss (arXiv
    2309.03199 §2.2): states that know the mean are what the flow has to know.

    Args:
      key: of the flow's times, noise and forgetting.
      share: of the rows whose condition the flow does not get.
    """
    mask = batch["mask"]
    heard = Frames(batch["mel"], batch["pitch"], batch["voiced"])
    speaker = network.voice(heard, mask)
    states, out, _ = network.read(batch["units"], batch["lengths"], speaker)
    known = (batch["runs"] >= 0).astype(mask.dtype)
    lasting = jnp.log(jnp.maximum(batch["durations"], 1).astype(mask.dtype))
    lasted = network.log_durations(batch["runs"], speaker)
    voicing = optax.sigmoid_binary_cross_entropy(out.voicing, heard.voicing)
    named = {
        "mel": _mean(jnp.mean(jnp.abs(out.mel - heard.mel), axis=-1), mask),
        "pitch": _mean(jnp.abs(out.pitch - heard.pitch), mask * heard.voicing),
        "voicing": _mean(voicing, mask),
        "duration": _mean((lasted - lasting) ** 2, known),
    }
    if network.flow is not None:
        drop, draw = jax.random.split(key)
        field = conditioned(network.flow, *forgotten(drop, share, states, speaker), mask)
        named["flow"] = flow_loss(field, heard.mel, mask, draw)
    return named


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(x * mask) / jnp.maximum(mask.sum(), 1)


def _learn_units(
    run_dir: Path,
    model: UnitVocoderConfig,
    training: UnitVocoderTraining,
    vocoder: Params,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> Params:
    """The stage "units": all parameters, the vocoder's as they were given."""
    graphdef, params = pure_params(UnitNetwork(model, rngs=nnx.Rngs(training.seed)))
    params.pop("vocoder")
    vocoder = jax.device_put(vocoder)
    steps = training.fit.steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, training.peak_lr, min(200, steps // 10), steps, 0.03 * training.peak_lr
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(2.0), optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=0.01)
    )

    def network(params: Params) -> UnitNetwork:
        return merge(graphdef, params | {"vocoder": vocoder})

    def total(params, batch, key):
        named = losses(network(params), batch, key, training.forgotten)
        return sum(_WEIGHTS.get(name, 1.0) * value for name, value in named.items()), named

    @jax.jit
    def step(state, batch, key):
        grads, named = jax.grad(total, has_aux=True)(state["params"], batch, key)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, named

    @jax.jit
    def lost(params, batch):
        return losses(network(params), batch, jax.random.key(0), 0.0)

    @jax.jit
    def said(params, batch):
        whole = network(params)
        heard = Frames(batch["mel"], batch["pitch"], batch["voiced"])
        return whole.sound(batch["units"], batch["lengths"], whole.voice(heard, batch["mask"]))

    drawn = draws(examples, training.batch, training.seed)
    tests = _batches(held_out, training.batch, model)
    sample = collate(examples[:1], model)

    def judge(state: dict[str, Any]) -> dict[str, float]:
        found = [jax.device_get(lost(state["params"], batch)) for batch in tests]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def listen(state: dict[str, Any]) -> np.ndarray:
        return np.asarray(said(state["params"], sample))[0, : sample["lengths"][0] * model.samples]

    state = fit(
        run_dir,
        "units",
        training.fit,
        {"params": params, "opt": optimizer.init(params)},
        step,
        lambda at: collate(drawn(at), model),
        training.seed,
        listen,
        judge if tests else None,
    )
    return state["params"] | {"vocoder": vocoder}


def _batches(
    examples: Sequence[Example], rows: int, model: UnitVocoderConfig
) -> list[dict[str, np.ndarray]]:
    """The first few batches of like length, none of them smaller than the others."""
    rows = min(rows, len(examples))
    some = sorted(examples[: rows * _JUDGED], key=lambda e: e.frames)
    starts = range(0, len(some) - rows + 1, rows) if rows else ()
    return [collate(some[at : at + rows], model) for at in starts]


def _voiced(example: Example) -> Voiced:
    hertz = np.asarray(denormalise_pitch(example.heard.pitch.astype(np.float32)))
    return Voiced(example.audio, hertz, example.heard.voicing)
