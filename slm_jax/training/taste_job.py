"""The TASTE tokenizer's recipe: vocoder, the stages of `taste_stages`, the vocoder on what the
decoder makes."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.audio.decode import load
from slm_jax.data.schema import Record, Word
from slm_jax.errors import UserError
from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste import RATE, save_taste
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.taste_network import TasteConfig, TasteNetwork
from slm_jax.tokenizers.taste_text import (
    Pronunciations,
    identify_pronunciations,
    read_dictionary,
)
from slm_jax.tokenizers.vocoder import denormalise_pitch
from slm_jax.training.adversarial import train_adversarially
from slm_jax.training.heard_cache import remembered
from slm_jax.training.spelling import Lines
from slm_jax.training.taste_examples import (
    FRAMES,
    Example,
    collate,
    draws,
    make_examples,
    resampled,
    samples,
)
from slm_jax.training.taste_losses import heard_words
from slm_jax.training.taste_stages import TasteTraining, train_tokenizer
from slm_jax.training.vocoder_job import VocoderTraining, Voiced, train_vocoder

HEARD = "heard"  # folder of a run that keeps what it listened to, while it is unfinished
_PART = 32  # utterances that a thread hears at once
_WITHHELD = 0.2  # of the dictionary's words, from the resampled utterances


@dataclasses.dataclass(frozen=True)
class TasteJob:
    """Root of `gin/taste_tokenizer.gin`.

    Attributes:
      name, runs: the run's directory is runs/name.
      datasets: names or folders of datasets with "audio" and "words"; their train splits are used,
        a dataset named n times n times as often. The first is the default voice's.
      whisper: folder of the frozen speech encoder, or the name of a fetched one.
      pronunciations: by which the decoder reads (CMUdict's format), or the name of a fetched
        dictionary.
      model, vocoder, training: sizes and schedules.
    """

    name: str = "taste_tokenizer"
    runs: str = "runs"
    datasets: tuple[str, ...] = ("prompts",)
    whisper: str = "whisper_tiny_en"
    pronunciations: str = "pronunciations"
    model: TasteConfig = TasteConfig()
    vocoder: VocoderTraining = VocoderTraining()
    training: TasteTraining = TasteTraining()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


def train(
    job: TasteJob,
    datasets: Mapping[str, Sequence[Record]],
    held_out: Sequence[Record],
    whisper: Path,
    pronunciations: Path,
) -> Path:
    """Runs (or resumes) the whole recipe; returns the folder of the finished tokenizer.

    Args:
      job: the recipe.
      datasets: of each name in `job.datasets`, joined records with "audio" and "words".
      held_out: such records that are not trained on; their losses are logged.
      whisper: folder of the speech encoder.
      pronunciations: the dictionary.

    Raises:
      UserError: no utterance has a length that is trained on.
    """
    run_dir = job.run_dir
    texts = [[w.text for w in r["words"].words] for rows in datasets.values() for r in rows]
    dictionary = read_dictionary(pronunciations)
    lines = Lines(dictionary, texts, job.training.seed)
    listener = Listener(whisper, job.model.value_layers, job.model.vocoder.mel)
    about = f"{whisper.name} {job.model.value_layers} {job.model.vocoder.mel}"
    hearing = _Hearing(listener, run_dir / HEARD, about)
    made = {
        name: _examples(hearing, name, records, dictionary) for name, records in datasets.items()
    }
    judged = hearing(*_opened(held_out), dictionary)
    examples = [example for name in job.datasets for example in made[name]]
    if not examples:
        longest = FRAMES[-1] * job.model.vocoder.mel.hop / RATE
        raise UserError(
            f"no utterance of {', '.join(made)} can be trained on",
            f"give transcribed utterances of at most {longest:.0f} s",
        )
    heard = [example for found in made.values() for example in found]
    vocoder = train_vocoder(run_dir, voiced_audio(heard), job.model.vocoder, job.vocoder)
    params = train_tokenizer(
        run_dir, examples, judged, lines, listener, vocoder, job.model, job.training
    )
    params["vocoder"] = vocoder
    params["vocoder"] = adapt_vocoder(run_dir, examples, listener, job, params)
    voice = default_speaker(listener, job.model, params, examples)
    save_taste(run_dir / "taste", job.model, params, voice, dictionary)
    shutil.rmtree(run_dir / HEARD, ignore_errors=True)  # gigabytes, of no use to a finished run
    return run_dir / "taste"


def _examples(
    hearing: _Hearing, name: str, records: Sequence[Record], dictionary: Pronunciations
) -> list[Example]:
    """Each utterance as it is, and once more in another voice (resampled by 6 to 20 %), with some
    words of the dictionary spelled as if it lacked them."""
    audios, words = _opened(records)
    found = hearing(audios, words, dictionary)
    print(f"{name}: {len(found)} of {len(audios)} utterances fit", flush=True)
    rng = np.random.default_rng(len(audios))
    factors = np.exp(rng.choice((-1, 1), len(audios)) * rng.uniform(0.06, 0.18, len(audios)))
    others = [resampled(*one) for one in zip(audios, words, factors, strict=True)]
    known = withhold(dictionary, len(audios))
    return found + hearing([a for a, _ in others], [w for _, w in others], known)


def withhold(dictionary: Pronunciations, seed: int) -> Pronunciations:
    """The dictionary without a share of its words, drawn by `seed`."""
    kept = np.random.default_rng(seed).random(len(dictionary)) >= _WITHHELD
    words = sorted(dictionary)
    return {word: dictionary[word] for word, keep in zip(words, kept, strict=True) if keep}


def _opened(records: Sequence[Record]) -> tuple[list[np.ndarray], list[list[Word]]]:
    audios = [load(record["audio"].flac) for record in records]
    return audios, [record["words"].words for record in records]


class _Hearing:
    """`make_examples` by several threads, so that the device need not wait for one, and what it
    gave kept in `folder`."""

    def __init__(self, listener: Listener, folder: Path, about: str):
        self._listener, self._folder, self._about = listener, folder, about

    def __call__(
        self,
        audios: Sequence[np.ndarray],
        words: Sequence[Sequence[Word]],
        dictionary: Pronunciations,
    ) -> list[Example]:
        about = f"{self._about} {identify_pronunciations(dictionary)}"
        order = sorted(range(len(audios)), key=lambda i: len(audios[i]))
        parts = [order[at : at + _PART] for at in range(0, len(order), _PART)]

        def hear(part: Sequence[int]) -> list[Example]:
            chosen = [audios[i] for i in part], [words[i] for i in part]
            make = functools.partial(make_examples, self._listener, pronunciations=dictionary)
            return remembered(self._folder, about, *chosen, make)

        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
            return [example for made in pool.map(hear, parts) for example in made]


def voiced_audio(examples: Sequence[Example]) -> list[Voiced]:
    """What the vocoder learns from."""
    return [
        Voiced(e.audio, np.asarray(denormalise_pitch(e.heard.pitch)), e.heard.voiced)
        for e in examples
    ]


def default_speaker(
    listener: Listener, config: TasteConfig, params: Params, examples: Sequence[Example]
) -> np.ndarray:
    """Mean speaker vector of the first examples (the first dataset's voice), of unit length."""
    network = TasteNetwork(config, listener.config)
    batch = collate(examples[:64], listener)
    mean = np.asarray(network.speaker(params, batch)).mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def _slices(x: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """x [B, T, ...], starts [B] -> [B, length, ...]."""
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length))(x, starts)


def make_pair(
    network: TasteNetwork, frames: int
) -> Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """(vocoder's parameters, (the other parameters, batch), key) -> what the vocoder makes of the
    decoder's frames (aligned durations) in a segment of `frames`, and what was recorded there."""
    hop, frames = network.config.vocoder.mel.hop, frames + 1

    def pair(vocoder, inputs, key):
        rest, batch = inputs
        latents, durations, hidden, _ = heard_words(network, rest, batch)
        q = network.quantize(rest, latents, batch["word_mask"], len(network.config.vocab))
        decoder = network.part(rest, "decoder")
        told = q.latents * batch["word_mask"][..., None]
        hidden, _ = decoder.tell(hidden, batch["ids"], batch["words"], told)
        shown = decoder.sound(hidden, durations, batch["mel"].shape[1])
        at = jax.random.randint(key, (len(durations),), 0, jnp.maximum(batch["frames"] - frames, 1))
        mel, hertz, voiced = (jax.lax.stop_gradient(_slices(x, at, frames)) for x in shown)
        real = _slices(batch["audio"], at * hop, (frames - 1) * hop)
        return network.part({"vocoder": vocoder}, "vocoder")(mel, hertz, voiced), real

    return pair


def adapt_vocoder(
    run_dir: Path,
    examples: Sequence[Example],
    listener: Listener,
    job: TasteJob,
    params: Params,
) -> Params:
    """Last stage: the vocoder learns from mels and pitch as the decoder makes them, which are
    smoother than real ones, against discriminators. Returns the vocoder's parameters."""
    network, hop = TasteNetwork(job.model, listener.config), job.model.vocoder.mel.hop
    rest = jax.device_put({name: part for name, part in params.items() if name != "vocoder"})
    drawn = draws(examples, job.vocoder.batch, job.training.seed + 99)

    def batch_at(step: int) -> tuple[Params, dict[str, np.ndarray]]:
        chosen = drawn(step)
        batch = collate(chosen, listener)
        return rest, batch | {"audio": samples(chosen, (batch["mel"].shape[1] - 1) * hop)}

    return train_adversarially(
        run_dir,
        "adapt",
        params["vocoder"],
        make_pair(network, job.vocoder.frames),
        batch_at,
        job.model.vocoder.mel.rate,
        job.vocoder.adversary,
        job.training.adapt,
        job.vocoder.seed,
    )
