"""What a model in training says: a few held-out prompts, continued aloud."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from slm_jax.audio import decode as audio_files
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import make_continuer
from slm_jax.errors import UserError
from slm_jax.evaluation.run import MAX_WORDS, held_out_records
from slm_jax.evaluation.spoken import choose, prompt_words
from slm_jax.models.speech_lm import SpeechLMConfig
from slm_jax.nn import tree
from slm_jax.tokenizers.taste import RATE, Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training import partitioning
from slm_jax.training.job import TrainJob
from slm_jax.training.writers import Clip


class Listener:
    """`slm_jax.training.writers.Listen` of a job: the prompts of `spoken`, by one device.

    Args:
      job: resolved; says how many prompts.
      text_tokenizer, whisper, pronunciations, decode: as of `evaluate_run`.

    Raises:
      UserError: the model speaks no TASTE tokens, or no dataset of the job has audio with them.
    """

    def __init__(
        self,
        job: TrainJob,
        *,
        text_tokenizer: Path,
        whisper: Path,
        pronunciations: Path,
        decode: DecodeJob,
    ):
        layout = job.system.layout
        if not isinstance(job.system.model, SpeechLMConfig):
            raise UserError(
                f"TrainJob.listen = {job.listen}, but only TASTE tokens are spoken in training",
                "set it to 0 for this system.",
            )
        families = [WORDS, AUDIO, layout.families[1]]
        opened = [spec.open() for spec in job.data.datasets]
        spoken = next((one for one in opened if {*families} <= set(one.specs)), None)
        if spoken is None:
            raise UserError(
                f"no dataset of the run has all of {', '.join(families)}",
                "set TrainJob.listen = 0, or add one with speech to MixtureSpec.parts.",
            )
        limits = dataclasses.replace(
            decode.limits, max_words=min(decode.limits.max_words, MAX_WORDS)
        )
        self._seed = decode.seed
        self._mesh = partitioning.make_mesh(partitioning.Parallel(), jax.local_devices()[:1])
        model = nnx.eval_shape(lambda: job.system.build(nnx.Rngs(0)))
        self._continuer = make_continuer(
            model,
            layout,
            TextTokenizer.load(text_tokenizer),
            Taste.load(whisper, pronunciations, decode.taste or job.taste),
            dataclasses.replace(decode, limits=limits),
        )
        chosen = choose(held_out_records(spoken, families), job.listen)
        heads = [prompt_words(record[WORDS].words) for record in chosen]
        audios = [
            audio_files.load(record[AUDIO].flac)[: int(words[-1].end * AUDIO_RATE)]
            for record, words in zip(chosen, heads, strict=True)
        ]
        self._prompts = self._continuer.hear(audios, heads)

    def __call__(self, params: tree.Params) -> list[Clip]:
        """What the model says; a prompt that it adds no word to is left out."""
        with jax.set_mesh(self._mesh):
            self._continuer.use(jax.device_put(params, partitioning.replicated(self._mesh)))
            said = self._continuer.write(self._prompts, self._seed)
            named = [(f"said/{n}", one) for n, one in enumerate(said) if one.words]
            audios = self._continuer.speak([one for _, one in named])
        join = self._continuer.segmenter.join
        return [
            Clip(name, np.clip(audio, -1, 1), RATE, f"{join(one.prompt.words)} [...] {one.text}")
            for (name, one), audio in zip(named, audios, strict=True)
        ]
