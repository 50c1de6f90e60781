"""Everything that is measured on a run, in order, and then its report."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from slm_jax.data.dataset import Dataset
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import make_continuer
from slm_jax.errors import UserError
from slm_jax.evaluation import language_model, report, results, spoken
from slm_jax.evaluation.speakers import SpeakerEncoder
from slm_jax.evaluation.token_statistics import token_statistics
from slm_jax.interop.llm import load_llm
from slm_jax.models.backbone import Backbone
from slm_jax.models.speech_lm import SpeechLM
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training.job import TrainJob

DATASET_REPORT = "report.json"  # what data_pipelines/build.py leaves in a dataset's folder
HELD_OUT = ("validation", "test")
MAX_WORDS = 16  # of a continuation: about three of the embedded corpus's utterances


def evaluate_run(
    job: TrainJob,
    model: SpeechLM,
    *,
    llm: Path | None,
    text_tokenizer: Path,
    whisper: Path,
    pronunciations: Path,
    decode: DecodeJob,
    voices: Path | None,
    run_dir: Path | None = None,
) -> Path:
    """Writes eval.json, samples/ and report.html into the folder of a run.

    Args:
      job: that trained the model.
      model: the speech LM.
      llm: the text LLM that it started from, None for none.
      text_tokenizer: of the text row.
      whisper: hears prompts and clips.
      pronunciations: that the tokenizer reads by.
      decode: how held-out prompts are continued, by 16 words at most; its checkpoint does not
        matter.
      voices: ONNX file of the speaker encoder, None to leave voices uncompared.
      run_dir: the run's folder if it has moved since.

    Returns:
      The path of the report.

    Raises:
      UserError: no dataset of the job has the layout's speech.
    """
    run, layout = run_dir or job.run_dir, job.system.layout
    opened = [spec.open() for spec in job.data.datasets]
    streams = [WORDS, *layout.families]
    speech = next((one for one in opened if set(streams) <= set(one.specs)), None)
    if speech is None:
        raise UserError(
            f"no dataset of the run has all of {', '.join(streams)}",
            "add a dataset with speech to MixtureSpec.parts",
        )
    train = list(speech.split("train", streams))
    held_out = held_out_records(speech, streams)
    reference = _untouched(llm) if llm else None
    scores = language_model.evaluate(model, reference, layout, train, held_out)
    results.save(run, "language_model", scores)

    family = layout.families[1]
    seconds = sum(record[WORDS].duration for record in train)
    codes = [record[family].values for record in train]
    results.save(run, "tokens", token_statistics(codes, speech.specs[family].vocab, seconds))
    results.save(run, "datasets", [one for one in map(_report, opened) if one])

    if job.prompts:
        taste = Taste.load(whisper, pronunciations, decode.taste or job.taste)
        tokenizer = TextTokenizer.load(text_tokenizer)
        most = min(decode.limits.max_words, MAX_WORDS)
        limits = dataclasses.replace(decode.limits, max_words=most)
        brief = dataclasses.replace(decode, limits=limits)
        continuer = make_continuer(model, layout, tokenizer, taste, brief)
        records = held_out_records(speech, [WORDS, AUDIO, family])
        ears = spoken.Ears(
            judges(whisper, decode.language), _quality(), SpeakerEncoder(voices) if voices else None
        )
        found = spoken.evaluate(continuer, records, ears, run, job.prompts, decode.seed)
        results.save(run, "spoken", found)
    return report.write(run)


def held_out_records(dataset: Dataset, families: list[str]) -> list[Record]:
    """The records of the validation and the test split together."""
    splits = [split for split in HELD_OUT if split in dataset.manifest.splits]
    return [record for split in splits for record in dataset.split(split, families)]


def _untouched(llm: Path) -> Backbone:
    config, params = load_llm(llm)
    graphdef, _ = pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))
    return merge(graphdef, params)


def judges(whisper: Path, language: str) -> Mapping[str, spoken.Judge]:
    """Our Whisper, and faster-whisper with the same weights where it is installed."""
    asr = Asr(whisper)

    def ours(audios: list[np.ndarray]) -> list[str]:
        return [heard.text for heard in asr.transcribe(audios, language, word_times=False)]

    found: dict[str, spoken.Judge] = {f"{whisper.name}, greedy": ours}
    if importlib.util.find_spec("faster_whisper") and (whisper / "model.bin").exists():
        from faster_whisper import WhisperModel

        peer = WhisperModel(str(whisper), device="cpu", compute_type="float32")

        def beam(audios: list[np.ndarray]) -> list[str]:
            options = {"language": language, "beam_size": 5, "temperature": 0.0}
            heard = (peer.transcribe(audio, **options)[0] for audio in audios)
            return [" ".join(part.text.strip() for part in parts) for parts in heard]

        found[f"{whisper.name}, faster-whisper, beam 5"] = beam
    return found


def _quality() -> Callable[[np.ndarray], float] | None:
    """DNSMOS, where it and what it needs are installed."""
    if not all(map(importlib.util.find_spec, ("speechmos", "librosa", "onnxruntime"))):
        return None
    from slm_jax.evaluation import quality

    return quality.overall


def _report(dataset: Dataset) -> dict[str, Any] | None:
    path = dataset.root / DATASET_REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
