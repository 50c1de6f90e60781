"""The codec's recipe: an autoencoder first, then with codes, then its decoder against
discriminators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from slm_jax.audio.decode import load
from slm_jax.data.schema import AUDIO, AUDIO_RATE, Record
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import rvq, rvq_decode, rvq_ema, rvq_encode, rvq_init, rvq_kmeans
from slm_jax.nn.tree import Params, merge, pure_params
from slm_jax.tokenizers.codecs.frame_codec import (
    FrameCodecConfig,
    FrameCodecNetwork,
    save_codec,
)
from slm_jax.tokenizers.vocoder import spectral_losses
from slm_jax.training.adversarial import Adversary, train_adversarially
from slm_jax.training.codec_teacher import Distillation, Teacher, without_map
from slm_jax.training.fit import FitConfig, fit

DECODER = ("spread", "spread_norm", "decoder", "decoder_norm", "speak")
_GAINS = (0.3, 1.4)  # that segments are multiplied by
_LATENTS = 30_000  # that k-means starts the codebooks from
_JUDGED = 4  # batches of held-out segments
_SPEECH = 1e-3  # root mean square that a segment must have to be drawn


@dataclasses.dataclass(frozen=True)
class CodecTraining:
    """Steps and rates of the three stages.

    Attributes:
      plain, codes, adversarial: the stages in their order.
      batch: segments a step.
      frames: of one segment.
      peak_lr: of the first two stages, which share one cosine.
      dropout_levels: probability that a step uses only the coarse part of the levels.
      commitment: weight of its loss; the spectral ones have 1.
      teacher: of the first level's latents, in the first two stages; nobody by default.
      adversary: of the last stage.
    """

    plain: FitConfig = FitConfig(steps=1000)
    codes: FitConfig = FitConfig(steps=8000)
    adversarial: FitConfig = FitConfig(steps=4000)
    batch: int = 8
    frames: int = 50
    peak_lr: float = 1e-3
    dropout_levels: float = 0.3
    commitment: float = 0.25
    teacher: Teacher = Teacher()
    adversary: Adversary = Adversary()
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CodecJob:
    """Root of `gin/codec.gin`.

    Attributes:
      name, runs: the run's directory is runs/name.
      datasets: names or folders of datasets with "audio"; their train splits are used, a dataset
        named n times n times as often.
      model, training: sizes and schedules.
    """

    name: str = "codec"
    runs: str = "runs"
    datasets: tuple[str, ...] = ("prompts",)
    model: FrameCodecConfig = FrameCodecConfig()
    training: CodecTraining = CodecTraining()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


def train(job: CodecJob, records: Sequence[Record], held_out: Sequence[Record]) -> Path:
    """Runs (or resumes) the recipe; returns the folder of the finished codec.

    Args:
      job: the recipe.
      records, held_out: joined records with "audio", to learn from and to judge checkpoints by.

    Raises:
      UserError: no recording is as long as a segment, or the codec is not for 16 kHz.
    """
    model, training = job.model, job.training
    if model.sample_rate != AUDIO_RATE:
        raise UserError(
            f"datasets hold audio at {AUDIO_RATE} Hz, the codec is for {model.sample_rate}",
            "set FrameCodecConfig.sample_rate and hop to that",
        )
    count = training.frames * model.hop
    audios, judged = (_opened(some, count) for some in (records, held_out))
    if not audios:
        raise UserError(
            f"no recording of {', '.join(job.datasets)} lasts {count / AUDIO_RATE:.1f} s",
            "give longer ones, or set CodecTraining.frames lower",
        )
    graphdef, params = pure_params(FrameCodecNetwork(model, rngs=nnx.Rngs(training.seed)))
    params.pop("codebooks")
    drawn = segments(audios, training, count)
    test = segments(judged, training, count) if judged else None
    params, books = _learn_codes(job, graphdef, params, drawn, test)
    params |= _sharpen(job, graphdef, params, books, drawn)
    folder = job.run_dir / "codec"
    save_codec(folder, model, params | {"codebooks": books})
    return folder


def segments(
    audios: Sequence[np.ndarray], training: CodecTraining, count: int
) -> Callable[[int], np.ndarray]:
    """The batch of a step, float32 [B, count] at random gains; a function of (seed, step). Long
    recordings are drawn more often; of ten draws the first that is not silent counts."""
    weights = np.array([len(audio) for audio in audios], np.float64)
    weights /= weights.sum()

    def draw(rng: np.random.Generator) -> np.ndarray:
        for _ in range(10):
            audio = audios[rng.choice(len(audios), p=weights)]
            at = int(rng.integers(0, len(audio) - count + 1))
            cut = audio[at : at + count].astype(np.float32)
            if np.sqrt(np.mean(cut**2)) > _SPEECH:
                break
        return cut * np.float32(rng.uniform(*_GAINS))

    def batch_at(step: int) -> np.ndarray:
        rng = np.random.default_rng((training.seed, step))
        return np.stack([draw(rng) for _ in range(training.batch)])

    return batch_at


def _opened(records: Sequence[Record], least: int) -> list[np.ndarray]:
    """float16 recordings of at least so many samples."""
    audios = (load(record[AUDIO].flac) for record in records)
    return [audio.astype(np.float16) for audio in audios if len(audio) >= least]


def _learn_codes(
    job: CodecJob,
    graphdef: nnx.GraphDef,
    params: Params,
    drawn: Callable[[int], np.ndarray],
    test: Callable[[int], np.ndarray] | None,
) -> tuple[Params, jax.Array]:
    """The stages "plain" and "codes": parameters and codebooks."""
    model, training = job.model, job.training
    steps = training.plain.steps + training.codes.steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, training.peak_lr, min(100, steps // 10), steps, 0.05 * training.peak_lr
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), optax.adamw(rate, b1=0.8, b2=0.99, weight_decay=0.01)
    )

    distillation = Distillation(training.teacher, training.frames, model.hop)
    weights = {"commitment": training.commitment, "teacher": training.teacher.weight}

    def losses(params, books, audio, features, quantized, used):
        network = merge(graphdef, without_map(params) | {"codebooks": books})
        frames = jnp.full(len(audio), audio.shape[1] // model.hop)
        latents = network.latents(audio, frames)
        q = rvq(books, latents, jnp.ones(latents.shape[:2]), used)
        said = network.sound(quantized * q.latents + (1 - quantized) * latents, frames)
        named = spectral_losses(said, audio, model.sample_rate)
        named |= {"commitment": quantized * q.commitment}
        first = latents + quantized * jax.lax.stop_gradient(books[0][q.codes[..., 0]] - latents)
        return named | distillation.losses(params, first, features), latents, said

    def total(params, *inputs):
        named, latents, _ = losses(params, *inputs)
        lost = sum(weights.get(name, 1.0) * value for name, value in named.items())
        return lost, (named, latents)

    @jax.jit
    def step(state, inputs, key):
        audio, features, quantized = inputs
        coin, draw, pick = jax.random.split(key, 3)
        fewer = jax.random.randint(draw, (), 1, model.rvq.levels + 1)
        coarse = jax.random.uniform(coin) < training.dropout_levels
        used = jnp.where(coarse, fewer, model.rvq.levels)
        books = state["quantizer"]["codebooks"]
        grads, (named, latents) = jax.grad(total, has_aux=True)(
            state["params"], books, audio, features, quantized, used
        )
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        moved = rvq_ema(state["quantizer"], model.rvq, latents, jnp.ones(latents.shape[:2]), pick)
        quantizer = jax.tree.map(
            lambda old, new: jnp.where(quantized > 0, new, old), state["quantizer"], moved
        )
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "quantizer": quantizer}, named

    @jax.jit
    def judged(state, audio, features, quantized):
        books = state["quantizer"]["codebooks"]
        return losses(state["params"], books, audio, features, quantized, model.rvq.levels)[::2]

    def stage(name: str, schedule: FitConfig, state: dict[str, Any], quantized: float):
        on = np.float32(quantized)

        def inputs(drawn: Callable[[int], np.ndarray], at: int):
            audio = drawn(at)
            return audio, distillation.features(audio), on

        def judge(state: dict[str, Any]) -> dict[str, float]:
            found = [jax.device_get(judged(state, *inputs(test, at))[0]) for at in range(_JUDGED)]
            return {key: float(np.mean([one[key] for one in found])) for key in found[0]}

        def listen(state: dict[str, Any]) -> np.ndarray:
            return np.concatenate(judged(state, *inputs(drawn, 0))[1])

        def batch_at(at: int):
            return inputs(drawn, at)

        seed = training.seed + int(quantized)
        asked = judge if test else None
        return fit(job.run_dir, name, schedule, state, step, batch_at, seed, listen, asked)

    params = params | distillation.start(model.rvq.width, training.seed)
    state: dict[str, Any] = {
        "params": params,
        "opt": optimizer.init(params),
        "quantizer": rvq_init(model.rvq),
    }
    state = stage("plain", training.plain, state, 0.0)
    state["quantizer"] = _start_codebooks(job, graphdef, without_map(state["params"]), drawn)
    state = stage("codes", training.codes, state, 1.0)
    return without_map(state["params"]), jnp.asarray(state["quantizer"]["codebooks"])


def _start_codebooks(
    job: CodecJob, graphdef: nnx.GraphDef, params: Params, drawn: Callable[[int], np.ndarray]
) -> dict[str, jax.Array]:
    """k-means over latents of the first batches."""
    model, training = job.model, job.training
    empty = rvq_init(model.rvq)["codebooks"]

    @jax.jit
    def latents(params, audio):
        network = merge(graphdef, params | {"codebooks": empty})
        return network.latents(audio, jnp.full(len(audio), training.frames))

    batches = -(-max(_LATENTS, model.rvq.codes) // (training.batch * training.frames))
    found = [np.asarray(latents(params, drawn(at))) for at in range(batches)]
    return rvq_kmeans(model.rvq, np.concatenate(found).reshape(-1, model.rvq.width), training.seed)


def _sharpen(
    job: CodecJob,
    graphdef: nnx.GraphDef,
    params: Params,
    books: jax.Array,
    drawn: Callable[[int], np.ndarray],
) -> Params:
    """The stage "adversarial": the decoder's parameters. Codes stay what they are, so that none of
    them has to be made again."""
    model, training = job.model, job.training
    rest = {name: part for name, part in params.items() if name not in DECODER}
    rest = jax.device_put(rest | {"codebooks": books})

    def pair(decoder, inputs, key):
        rest, audio = inputs
        coin, draw = jax.random.split(key)
        fewer = jax.random.randint(draw, (), 1, model.rvq.levels + 1)
        coarse = jax.random.uniform(coin) < training.dropout_levels
        used = jnp.where(coarse, fewer, model.rvq.levels)
        network = merge(graphdef, rest | decoder)
        frames = jnp.full(len(audio), audio.shape[1] // model.hop)
        codes = rvq_encode(rest["codebooks"], network.latents(audio, frames))
        level = (jnp.arange(model.rvq.levels) < used).astype(jnp.float32)[:, None, None]
        heard = rvq_decode(rest["codebooks"] * level, codes)
        return network.sound(jax.lax.stop_gradient(heard), frames), audio

    return train_adversarially(
        job.run_dir,
        "adversarial",
        {name: params[name] for name in DECODER},
        pair,
        lambda step: (rest, drawn(step)),
        model.sample_rate,
        training.adversary,
        training.adversarial,
        training.seed,
    )
