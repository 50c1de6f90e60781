"""Trains a speech language model.

python launch/train.py --gin_file=taste_pretrain.gin [--profile_steps=10:13] [--dry_run]

With one process, whatever the job lacks is fetched and built first; afterwards the run is measured
on held-out utterances and described in RUN/report.html. The same command continues a run that was
stopped. On several hosts the same command runs on each, and nothing is fetched or built.
--dry_run prints what the run would be, fetches, builds, computes and writes nothing, and stops.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from data_pipelines import build, fetch
from slm_jax import config
from slm_jax.decoding.job import DecodeJob
from slm_jax.errors import UserError, run_main
from slm_jax.evaluation.listen import Listener
from slm_jax.evaluation.run import evaluate_run
from slm_jax.layouts import show_batch
from slm_jax.models.speech_lm import SpeechLMConfig
from slm_jax.nn import tree
from slm_jax.paths import cache_dir
from slm_jax.planning import dry_run
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training import checkpoint, distributed, loop, setup
from slm_jax.training.job import TrainJob
from slm_jax.training.profile import parse_steps


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Trains a speech language model.")
    parser.add_argument(
        "--profile_steps",
        type=parse_steps,
        default=range(0),
        metavar="FIRST:END",
        help="trace these steps into RUN/profile, END not among them",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be trained on what, and stop"
    )
    job, flags = config.from_flags("TrainJob", parser, argv)
    distributed.initialize()
    if flags.dry_run:
        show(job)
        return
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
    listen = _listener(job.resolve(llm)) if job.listen else None
    outcome = loop.train(job, llm, codebooks, profile_steps=flags.profile_steps, listen=listen)
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


def show(job: TrainJob) -> None:
    """Prints the resolved job, its parameters, memory and first batch; leaves nothing behind."""
    if job.llm and not fetch.present(job.llm.path):
        raise UserError(
            f"{job.llm.path}, whose sizes the model takes, is not in {cache_dir()}",
            f"fetch it first: python -m data_pipelines.fetch {job.llm.path}",
        )
    job = job.resolve(fetch.locate(job.llm.path) if job.llm else None)
    program = setup.make(job)
    if not distributed.is_main():
        return
    saved = checkpoint.steps_in(job.run_dir / checkpoint.DIRECTORY)
    begins = f"would go on from step {saved[-1]}" if saved else "would begin"
    print(config.dump(job))
    for part in (dry_run.parameters, dry_run.batch, dry_run.memory_of):
        print(part(program) + "\n")
    print(_first_batch(job))
    print(f"\nrun {job.run_dir}: {begins}; {job.steps} steps in all. Nothing was written.")


def _first_batch(job: TrainJob) -> str:
    piece = str
    if fetch.present(job.text_tokenizer):
        text = TextTokenizer.load(fetch.locate(job.text_tokenizer))

        def piece(id_: int) -> str:
            return repr(text.decode([id_]))[1:-1].replace(" ", "_")

    with tempfile.TemporaryDirectory() as cache:
        try:
            row = job.loader("train", Path(cache)).batch(0, [0])
        except UserError as error:  # the rest is worth knowing without data, too
            return f"first batch: {error}"
    first = {name: leaf[0] for name, leaf in row.items()}
    return f"first row of the first batch\n{show_batch.render(job.system.layout, first, piece)}"


def _listener(job: TrainJob) -> Listener:
    if jax.process_count() > 1:
        raise UserError(
            f"TrainJob.listen = {job.listen}, but {jax.process_count()} processes train",
            "set it to 0, and listen to the checkpoints with launch/decode.py.",
        )
    decode = DecodeJob()
    return Listener(
        job,
        text_tokenizer=fetch.locate(job.text_tokenizer),
        whisper=fetch.locate(decode.asr),
        pronunciations=fetch.locate(decode.pronunciations),
        decode=decode,
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
