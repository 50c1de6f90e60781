"""The TASTE tokenizer's recipe: vocoder, then three stages, then the vocoder on decoded mels.

Stages as in the paper's code (reference `STAGE1_TRAIN`): (1) the decoder learns to speak from text
and a speaker vector alone, (2) latents are added without quantizer, (3) codebooks start from
k-means on them and the quantizer is switched on. The aggregator's pretrained layers learn slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slm_jax.audio.decode import load
from slm_jax.data.schema import Record
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import rvq_ema, rvq_kmeans
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste import RATE, TasteConfig, TasteNetwork, save_taste
from slm_jax.tokenizers.taste_decoder import monotonic_alignment, owners, pick
from slm_jax.tokenizers.taste_encoder import start_from_whisper
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.vocoder import denormalise_mel, spectral_losses
from slm_jax.training.fit import FitConfig, fit
from slm_jax.training.taste_examples import FRAMES, Example, batches, collate, make_examples
from slm_jax.training.vocoder_job import VocoderTraining, train_vocoder

TRAINED = ("aggregator", "speaker", "decoder")


@dataclasses.dataclass(frozen=True)
class TasteTraining:
    """Steps and rates of the three stages and the vocoder's last one.

    Attributes:
      text, latent, quantized, adapt: the stages in their order.
      batch: utterances a step.
      peak_lr, aggregator_lr: of the decoder and speaker, and of the pretrained aggregator.
      duration_weight, commitment: of their losses; mels have weight 1.
      dropout_levels: probability that a step uses only a coarse part of the RVQ levels.
    """

    text: FitConfig = FitConfig(steps=1800)
    latent: FitConfig = FitConfig(steps=400)
    quantized: FitConfig = FitConfig(steps=4200)
    adapt: FitConfig = FitConfig(steps=300)
    batch: int = 4
    peak_lr: float = 2e-3
    aggregator_lr: float = 2e-4
    adapt_lr: float = 3e-4
    duration_weight: float = 0.3
    commitment: float = 0.25
    dropout_levels: float = 0.2
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class TasteJob:
    """Root of `gin/taste_tokenizer.gin`.

    Attributes:
      name, runs: the run's directory is runs/name.
      datasets: names or folders of datasets with "audio" and "words"; their train splits are used,
        a dataset named n times n times as often. The first is the default voice's.
      whisper: folder of the frozen speech encoder, or the name of a fetched one.
      model, vocoder, training: sizes and schedules.
    """

    name: str = "taste_tokenizer"
    runs: str = "runs"
    datasets: tuple[str, ...] = ("prompts", "prompts", "prompts", "piper")
    whisper: str = "whisper_tiny_en"
    model: TasteConfig = TasteConfig()
    vocoder: VocoderTraining = VocoderTraining()
    training: TasteTraining = TasteTraining()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


def train(job: TasteJob, datasets: Mapping[str, Sequence[Record]], whisper: Path) -> Path:
    """Runs (or resumes) the whole recipe; returns the folder of the finished tokenizer.

    Args:
      job: the recipe.
      datasets: of each name in `job.datasets`, joined records with "audio" and "words".
      whisper: folder of the speech encoder.

    Raises:
      UserError: no utterance has a length that is trained on.
    """
    run_dir = job.run_dir
    listener = Listener(whisper, job.model.value_layer)
    audios: list[np.ndarray] = []
    made: dict[str, list[Example]] = {}
    for name, records in datasets.items():
        heard = [load(record["audio"].flac) for record in records]
        words = [record["words"].words for record in records]
        made[name] = make_examples(listener, heard, words, job.model.vocoder.mel)
        print(f"{name}: {len(made[name])} of {len(heard)} utterances fit", flush=True)
        audios += heard
    examples = [example for name in job.datasets for example in made[name]]
    if not examples:
        longest = FRAMES[-1] * job.model.vocoder.mel.hop / RATE
        raise UserError(
            f"no utterance of {', '.join(made)} can be trained on",
            f"give transcribed utterances of at most {longest:.0f} s",
        )
    vocoder = train_vocoder(run_dir, audios, job.model.vocoder, job.vocoder)
    params = train_tokenizer(run_dir, examples, listener, job.model, job.training)
    params["vocoder"] = vocoder
    params["vocoder"] = adapt_vocoder(run_dir, examples, listener, job.model, job.training, params)
    voice = default_speaker(listener, job.model, params, examples)
    save_taste(run_dir / "taste", job.model, params, voice)
    return run_dir / "taste"


def default_speaker(
    listener: Listener, config: TasteConfig, params: Params, examples: Sequence[Example]
) -> np.ndarray:
    """Mean speaker vector of the first examples (the first dataset's voice), of unit length."""
    network = TasteNetwork(config, listener.config)
    batch = collate(examples[:64], listener)
    mean = np.asarray(network.speaker(params, batch)).mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def losses(
    network: TasteNetwork,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    told: bool,
    quantized: jax.Array,
    training: TasteTraining,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """Total loss, named losses, and the latents [B, W, L] before quantisation.

    Args:
      told: whether the decoder hears latents; without them the aggregator does not run.
      quantized: 0 or 1, whether it hears them through the quantizer.
    """
    words = batch["word_mask"].shape[1]
    levels = len(network.config.vocab)
    if told:
        latents = network.latents(params, batch, words)
    else:
        latents = jnp.zeros((*batch["word_mask"].shape, network.config.latent))
    coin, draw = jax.random.split(key)
    fewer = jax.random.randint(draw, (), 1, levels + 1)
    used = jnp.where(jax.random.uniform(coin) < training.dropout_levels, fewer, levels)
    q = network.quantize(params, latents, batch["word_mask"], used)
    heard = quantized * q.latents + (1 - quantized) * latents
    speaker = network.speaker(params, batch)
    decoder = network.part(params, "decoder")
    ids, mel, frames = batch["ids"], batch["mel"], batch["frames"]
    state = decoder.read(ids, batch["words"], heard * batch["word_mask"][..., None], speaker)

    durations = align(jax.lax.stop_gradient(state.prior), batch)
    predicted = decoder.write(state.hidden, durations, mel.shape[1])
    frame_mask = (jnp.arange(mel.shape[1])[None] < frames[:, None]).astype(mel.dtype)
    total_frames = frame_mask.sum()
    expected = pick(state.prior, owners(durations, mel.shape[1]))

    def frame_mean(x):
        return jnp.sum(jnp.mean(x, axis=-1) * frame_mask) / total_frames

    byte_mask = (ids > 0).astype(mel.dtype)
    log_target = jnp.log(jnp.maximum(durations, 1).astype(mel.dtype))
    byte_error = (state.log_durations - log_target) ** 2
    own = jax.nn.one_hot(batch["words"], words, dtype=mel.dtype) * byte_mask[..., None]
    word_target = jnp.einsum("bn,bnw->bw", durations.astype(mel.dtype), own)
    lengths = jnp.exp(jnp.clip(state.log_durations, -2, 5)) * byte_mask
    word_length = jnp.einsum("bn,bnw->bw", lengths, own)
    word_error = jnp.abs(jnp.log(word_length + 1) - jnp.log(word_target + 1))
    named = {
        "mel": frame_mean(jnp.abs(predicted - mel)) + 0.5 * frame_mean((predicted - mel) ** 2),
        "prior": frame_mean((expected - mel) ** 2),
        "duration": jnp.sum(byte_error * byte_mask) / byte_mask.sum(),
        "word_duration": jnp.sum(word_error * batch["word_mask"]) / batch["word_mask"].sum(),
        "commitment": quantized * q.commitment,
    }
    weight = training.duration_weight
    total = (
        named["mel"]
        + 0.5 * named["prior"]
        + weight * named["duration"]
        + 2 * weight * named["word_duration"]
        + training.commitment * named["commitment"]
    )
    return total, (named, latents)


def align(prior: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Durations [B, N] of the best monotonic path of the mels through the bytes' priors; spoken
    bytes are kept within reach of where the aligner heard their word."""
    mel = batch["mel"]
    cross = jnp.einsum("bnm,btm->bnt", prior, mel)
    scores = cross - 0.5 * jnp.sum(prior**2, -1)[..., None]
    time = jnp.arange(mel.shape[1])
    low, high = batch["window"][..., :1], batch["window"][..., 1:]
    outside = jnp.maximum(jnp.maximum(low - time, time - high + 1), 0)
    scores = scores - 20.0 * jnp.minimum(outside, 50)
    return monotonic_alignment(scores, (batch["ids"] > 0).sum(1), batch["frames"])


def make_step(
    network: TasteNetwork, optimizer: optax.GradientTransformation, t: TasteTraining, told: bool
):
    """(state, (batch, quantized), key) -> (state, losses), jitted; see `losses`."""

    @jax.jit
    def step(state, inputs, key):
        batch, quantized = inputs
        rest = {"quantizer": state["quantizer"]}

        def total(trained):
            return losses(network, trained | rest, batch, key, told, quantized, t)

        grads, (named, latents) = jax.grad(total, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        quantizer = state["quantizer"]
        if network.config.quantizer == "rvq":
            moved = rvq_ema(quantizer, network.config.rvq, latents, batch["word_mask"], key)
            quantizer = jax.tree.map(
                lambda old, new: jnp.where(quantized > 0, new, old), quantizer, moved
            )
        return {"params": params, "opt": opt, "quantizer": quantizer}, named

    return step


def train_tokenizer(
    run_dir: Path,
    examples: Sequence[Example],
    listener: Listener,
    config: TasteConfig,
    training: TasteTraining,
) -> Params:
    """Stages 1-3; returns {"aggregator", "speaker", "decoder", "quantizer"}."""
    network = TasteNetwork(config, listener.config)
    params = network.init(training.seed)
    params["aggregator"] = start_from_whisper(
        params["aggregator"], listener.decoder, config.aggregator_layers
    )
    steps = training.text.steps + training.latent.steps + training.quantized.steps
    decay = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(200, steps // 10), steps, 0.03)

    def adam(rate):
        return optax.adamw(lambda s: rate * decay(s), b1=0.9, b2=0.98, weight_decay=0.01)

    trained = {name: params[name] for name in TRAINED}
    labels = {name: "slow" if name == "aggregator" else "fast" for name in TRAINED}
    optimizer = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.partition(
            {"slow": adam(training.aggregator_lr), "fast": adam(training.peak_lr)}, labels
        ),
    )
    state = {
        "params": trained,
        "opt": optimizer.init(trained),
        "quantizer": params["quantizer"],
    }
    text = make_step(network, optimizer, training, told=False)
    told = make_step(network, optimizer, training, told=True)
    stages = [
        ("text", training.text, text, 0.0),
        ("latent", training.latent, told, 0.0),
        ("quantized", training.quantized, told, 1.0),
    ]
    for number, (name, schedule, step, quantized) in enumerate(stages):
        if name == "quantized" and config.quantizer == "rvq":
            state["quantizer"] = _codebooks(network, state, examples, listener, training)

        def feed(start: int, number: int = number, quantized: float = quantized):
            seed = training.seed * 10 + number
            for batch in batches(examples, listener, training.batch, seed, start):
                yield batch, np.float32(quantized)

        state = fit(run_dir, name, schedule, state, step, feed, training.seed + number)
    return state["params"] | {"quantizer": state["quantizer"]}


def _codebooks(
    network: TasteNetwork,
    state: dict[str, Any],
    examples: Sequence[Example],
    listener: Listener,
    training: TasteTraining,
) -> dict[str, jax.Array]:
    """k-means over the latents of the training set (at most 20,000 words)."""
    find = jax.jit(
        lambda params, batch: network.latents(params, batch, batch["word_mask"].shape[1])
    )
    vectors, count = [], 0
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].mel))
    for start in range(0, len(order) - training.batch + 1, training.batch):
        batch = collate([examples[i] for i in order[start : start + training.batch]], listener)
        latents = np.asarray(find(state["params"], batch))
        vectors.append(latents[batch["word_mask"] > 0])
        count += len(vectors[-1])
    pool = np.concatenate(vectors)
    rng = np.random.default_rng(training.seed)
    pool = pool[rng.permutation(len(pool))[:20_000]]
    return rvq_kmeans(network.config.rvq, pool, training.seed)


def _slices(x: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """x [B, T, ...], starts [B] -> [B, length, ...]."""
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length))(x, starts)


def adapt_vocoder(
    run_dir: Path,
    examples: Sequence[Example],
    listener: Listener,
    config: TasteConfig,
    training: TasteTraining,
    params: Params,
) -> Params:
    """Last stage: the vocoder learns from mels as the decoder makes them (aligned durations),
    which are smoother than real ones. Returns the vocoder's parameters."""
    network = TasteNetwork(config, listener.config)
    mel_config = config.vocoder.mel
    schedule = optax.cosine_decay_schedule(training.adapt_lr, training.adapt.steps, 0.05)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(schedule, b1=0.8, b2=0.99))
    frames = 64

    def total(vocoder, rest, batch, key):
        words = batch["word_mask"].shape[1]
        latents = network.latents(rest, batch, words)
        q = network.quantize(rest, latents, batch["word_mask"], len(config.vocab))
        speaker = network.speaker(rest, batch)
        decoder = network.part(rest, "decoder")
        latents = q.latents * batch["word_mask"][..., None]
        state = decoder.read(batch["ids"], batch["words"], latents, speaker)
        durations = align(state.prior, batch)
        mel = denormalise_mel(decoder.write(state.hidden, durations, batch["mel"].shape[1]))
        spare = jnp.maximum(batch["frames"] - frames, 1)
        at = jax.random.randint(key, spare.shape, 0, spare)
        samples = (frames - 1) * mel_config.hop
        mel = jax.lax.stop_gradient(_slices(mel, at, frames))
        audio = _slices(batch["audio"], at * mel_config.hop, samples)
        wave = network.part({"vocoder": vocoder}, "vocoder")(mel)
        named = spectral_losses(wave, audio, mel_config)
        return sum(named.values()), named

    @jax.jit
    def step(state, batch, key):
        grads, named = jax.grad(total, has_aux=True)(state["vocoder"], params, batch, key)
        updates, opt = optimizer.update(grads, state["opt"], state["vocoder"])
        return {"vocoder": optax.apply_updates(state["vocoder"], updates), "opt": opt}, named

    state = {"vocoder": params["vocoder"], "opt": optimizer.init(params["vocoder"])}

    def feed(start: int):
        return batches(examples, listener, training.batch, training.seed + 99, start)

    return fit(run_dir, "adapt", training.adapt, state, step, feed, training.seed + 9)["vocoder"]
