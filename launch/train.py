"""Trains a speech language model.

python launch/train.py --gin_file=taste_pretrain.gin

With one process, whatever the job lacks is fetched and built first; afterwards the run is measured
on held-out utterances and described in RUN/report.html. The same command continues a run that was
stopped. On several hosts the same command runs on each, and nothing is fetched or built.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

from data_pipelines import build, fetch
from slm_jax import config
from slm_jax.decoding.job import DecodeJob
from slm_jax.errors import UserError, run_main
from slm_jax.evaluation.run import evaluate_run
from slm_jax.models.speech_lm import SpeechLMConfig
from slm_jax.nn import tree
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.taste import Taste
from slm_jax.training import distributed, loop
from slm_jax.training.job import TrainJob


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Trains a speech language model.")
    job, _ = config.from_flags("TrainJob", parser, argv)
    distributed.initialize()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    if distributed.is_main():
        print(config.dump(job, defaults=False), flush=True)
    prepare(job)
    llm = _asset(job.llm.path) if job.llm else None
    codebooks = None
    if isinstance(job.system.model, SpeechLMConfig) and job.system.model.head == "continuous":
        codebooks = Taste.load(
            _asset("whisper_tiny_en"), _asset("pronunciations"), job.taste
        ).codebook_latents
    outcome = loop.train(job, llm, codebooks)
    if not outcome.finished:
        raise SystemExit(distributed.PREEMPTED)
    report = job.run_dir / "report.html"
    if outcome.trained == 0 and distributed.is_main():
        print(
            f"run {job.run_dir} is complete: {outcome.step} steps. "
            "Raise --gin.STEPS to train it further, or give another --gin.NAME."
        )
    if job.prompts and jax.process_count() == 1 and (outcome.trained or not report.exists()):
        decode = DecodeJob()
        report = evaluate_run(
            outcome.job,
            tree.merge(outcome.graphdef, outcome.params),
            llm=llm,
            text_tokenizer=fetch.locate(job.text_tokenizer),
            whisper=fetch.locate(decode.asr),
            pronunciations=fetch.locate(decode.pronunciations),
            decode=decode,
            voices=fetch.speaker_encoder(),
        )
        print(f"report: {report}")


def prepare(job: TrainJob) -> None:
    """Builds the datasets that are missing; with several processes, only looks for them.

    Raises:
      UserError: a corpus cannot be had, or a dataset is incomplete and several processes run.
    """
    for source in job.sources:
        if jax.process_count() == 1:
            build.ensure_dataset(source)
        elif missing := build.missing_parts(source):
            raise UserError(
                f"dataset {source.root} lacks {', '.join(missing)}, and {jax.process_count()} "
                "processes run, which build nothing",
                f"run this once, where every host sees the result: {build.command(source)}",
            )


def _asset(name: str) -> Path:
    if jax.process_count() > 1 and not fetch.present(name):
        raise UserError(
            f"{name} is not in {cache_dir()}, and several processes fetch nothing",
            f"run this once, where every host sees it: python -m data_pipelines.fetch {name}",
        )
    return fetch.locate(name)


if __name__ == "__main__":
    run_main(main)
