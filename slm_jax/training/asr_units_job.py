"""The recipe of supervised units: a quantiser in Whisper's encoder, and the layers above it, learn
from the transcripts that Whisper's frozen decoder has to read from the codes."""

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
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.errors import UserError
from slm_jax.nn.tree import Params, flatten, merge, pure_params, unflatten
from slm_jax.tokenizers.asr_units import save_asr_units
from slm_jax.tokenizers.asr_units_network import (
    LONGEST,
    RATE,
    AsrUnitsConfig,
    AsrUnitsNetwork,
    identify,
    whisper_weights,
)
from slm_jax.tokenizers.taste_network import bucket
from slm_jax.tokenizers.whisper import Whisper
from slm_jax.tokenizers.whisper_text import WhisperText
from slm_jax.training.fit import FitConfig, fit
from slm_jax.training.taste_examples import draws

_IDS = 32  # ids are padded to a multiple of it
_IGNORED = -1  # a target that does not count
_JUDGED = 4  # batches of held-out utterances


@dataclasses.dataclass(frozen=True)
class AsrUnitsTraining:
    """Steps and rates.

    Attributes:
      fit: the only stage.
      batch: utterances a step.
      peak_lr: of a cosine.
      below: whether Whisper's layers below the codes learn along.
    """

    fit: FitConfig = FitConfig(steps=1000)
    batch: int = 8
    peak_lr: float = 5e-4
    below: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class AsrUnitsJob:
    """Root of `gin/asr_units.gin`.

    Attributes:
      name, runs: the run's directory is runs/name.
      datasets: names or folders of datasets with "audio" and "words", in a language that the
        Whisper knows; their train splits are used, a dataset named n times n times as often.
      whisper: folder of the Whisper, or the name of a fetched one.
      language: of its prompt.
      model, training: sizes and schedules.
    """

    name: str = "asr_units"
    runs: str = "runs"
    datasets: tuple[str, ...] = ("prompts",)
    whisper: str = "whisper_tiny_en"
    language: str = "en"
    model: AsrUnitsConfig = AsrUnitsConfig()
    training: AsrUnitsTraining = AsrUnitsTraining()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


class Example(NamedTuple):
    """One utterance: float16 samples at 16 kHz, as many codes, and int32 ids of prompt, text and
    end, of which the first `prompt` are not to be predicted."""

    audio: np.ndarray
    frames: int
    ids: np.ndarray
    prompt: int


def train(
    job: AsrUnitsJob, records: Sequence[Record], held_out: Sequence[Record], folder: Path
) -> Path:
    """Runs (or resumes) the recipe; returns the folder of the finished units.

    Args:
      job: the recipe.
      records, held_out: joined records with "audio" and "words", to learn from and to judge
        checkpoints by.
      folder: of the Whisper.

    Raises:
      UserError: nothing can be trained on, the Whisper does not know the language, or it has no
        layer above the codes.
    """
    whisper = Whisper.load(folder)
    model = dataclasses.replace(job.model, whisper=identify(whisper))
    given = whisper_weights(model, whisper)
    text = WhisperText(folder, whisper.config.vocab_size)
    most = whisper.config.text_context
    examples, judged = (
        make_examples(some, model, text, job.language, most) for some in (records, held_out)
    )
    print(f"{len(examples)} of {len(records)} utterances fit a Whisper", flush=True)
    if not examples:
        raise UserError(
            f"no utterance of {', '.join(job.datasets)} can be trained on",
            f"give transcribed ones of at most {LONGEST} s",
        )
    rngs = nnx.Rngs(job.training.seed)
    graphdef, fresh = pure_params(AsrUnitsNetwork(model, whisper.config, rngs=rngs))
    kept = ("decoder/",) if job.training.below else ("decoder/", "below/")
    frozen = {name: array for name, array in given.items() if name.startswith(kept)}
    learned = {n: array for n, array in (flatten(fresh) | given).items() if n not in frozen}
    learned = _learn(job, graphdef, unflatten(learned), unflatten(frozen), examples, judged)
    place = job.run_dir / "asr_units"
    save_asr_units(place, model, flatten(learned))
    return place


def make_examples(
    records: Sequence[Record], model: AsrUnitsConfig, text: WhisperText, language: str, most: int
) -> list[Example]:
    """Examples of records with "audio" and "words"; those longer than 29 s or `most` ids, or
    without words, are left out."""
    prompt = text.prompt(language)
    examples = []
    for record in records:
        audio, said = load(record[AUDIO].flac).astype(np.float16), record[WORDS].text.strip()
        ids = np.array([*prompt, *text.encode(" " + said), text.end], np.int32)
        if said and len(audio) <= LONGEST * RATE and len(ids) <= most:
            examples.append(Example(audio, model.frames(len(audio)), ids, len(prompt)))
    return examples


def collate(examples: Sequence[Example], model: AsrUnitsConfig) -> dict[str, np.ndarray]:
    """Pads audio to the context of the longest.

    Returns:
      audio: float32 [B, T * hop].
      frames: int32 [B].
      ids, targets: int32 [B, S], what the decoder reads and is to say next; -1 where it does not
        matter.
    """
    rows, count = len(examples), model.context(max(e.frames for e in examples))
    length = bucket(max(len(e.ids) for e in examples) - 1, _IDS)
    batch = {
        "audio": np.zeros((rows, count * model.hop), np.float32),
        "frames": np.array([e.frames for e in examples], np.int32),
        "ids": np.zeros((rows, length), np.int32),
        "targets": np.full((rows, length), _IGNORED, np.int32),
    }
    for row, e in enumerate(examples):
        batch["audio"][row, : len(e.audio)] = e.audio
        batch["ids"][row, : len(e.ids) - 1] = e.ids[:-1]
        batch["targets"][row, e.prompt - 1 : len(e.ids) - 1] = e.ids[e.prompt :]
    return batch


def losses(
    network: AsrUnitsNetwork, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Of one batch of `collate`, by teacher forcing.

    Returns:
      asr: mean cross-entropy of the ids. token_error: share of ids that are not the likeliest.
      codes: int32 [B, T, K].
    """
    q = network.quantise(batch["audio"])
    decoder = network.decoder
    heard = network.hear(q.latents, batch["frames"])
    logits = decoder.logits(decoder(batch["ids"], decoder.cross(heard)).hidden)
    targets = batch["targets"]
    known = (targets != _IGNORED).astype(jnp.float32)
    lost = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    wrong = jnp.argmax(logits, axis=-1) != targets
    total = known.sum()
    named = {"asr": jnp.sum(lost * known) / total, "token_error": jnp.sum(wrong * known) / total}
    return named, q.codes


def _learn(
    job: AsrUnitsJob,
    graphdef: nnx.GraphDef,
    params: Params,
    frozen: Params,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> Params:
    model, training = job.model, job.training
    frozen = jax.device_put(frozen)
    steps = training.fit.steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, training.peak_lr, min(100, steps // 10), steps, 0.05 * training.peak_lr
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=0.01)
    )

    def lost(params, frozen, batch):
        whole = unflatten(flatten(frozen) | flatten(params))
        return losses(merge(graphdef, whole), batch)

    def total(params, frozen, batch):
        named, _ = lost(params, frozen, batch)
        return named["asr"], named

    @jax.jit
    def step(state, inputs, key):
        grads, named = jax.grad(total, has_aux=True)(state["params"], *inputs)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, named

    drawn = draws(examples, training.batch, training.seed)
    tests = _batches(held_out, training.batch, model)
    judged = jax.jit(lost)

    def judge(state: dict[str, Any]) -> dict[str, float]:
        found = [jax.device_get(judged(state["params"], frozen, batch)) for batch in tests]
        means = {name: float(np.mean([one[name] for one, _ in found])) for name in found[0][0]}
        pairs = [(codes, b["frames"]) for (_, codes), b in zip(found, tests, strict=True)]
        known = [codes[np.arange(codes.shape[1]) < n[:, None]] for codes, n in pairs]
        return means | usage(np.concatenate(known))

    state = fit(
        job.run_dir,
        "asr_units",
        training.fit,
        {"params": params, "opt": optimizer.init(params)},
        step,
        lambda at: (frozen, collate(drawn(at), model)),
        training.seed,
        judge=judge if tests else None,
    )
    return state["params"]


def usage(codes: np.ndarray) -> dict[str, float]:
    """Of int [n, K]: how many different codes a level has on average, and 2 to their entropy."""
    counts = [np.unique(level, return_counts=True)[1] for level in codes.T]
    shares = [count / count.sum() for count in counts]
    perplexities = [2.0 ** -(p * np.log2(p)).sum() for p in shares]
    return {
        "codes": float(np.mean([len(count) for count in counts])),
        "perplexity": float(np.mean(perplexities)),
    }


def _batches(
    examples: Sequence[Example], rows: int, model: AsrUnitsConfig
) -> list[dict[str, np.ndarray]]:
    """The first few batches of like length, none of them smaller than the others."""
    rows = min(rows, len(examples))
    some = sorted(examples[: rows * _JUDGED], key=lambda e: e.frames)
    starts = range(0, len(some) - rows + 1, rows) if rows else ()
    return [collate(some[at : at + rows], model) for at in starts]
