"""Measures a finished run and writes its report, or writes the report again.

python launch/evaluate.py --run=runs/NAME [--report_only] [--beside=runs/OTHER ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

from data_pipelines import fetch
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import load_model
from slm_jax.errors import run_main
from slm_jax.evaluation import report, results
from slm_jax.evaluation.run import evaluate_run
from slm_jax.paths import cache_dir


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measures a finished run and writes its report.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="made by training")
    parser.add_argument("--report_only", action="store_true", help="measure nothing")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a measured run whose cross-entropies the report sets beside this run's; repeatable",
    )
    args = parser.parse_args(argv)
    if not args.report_only:
        measure(args.run)
    if args.beside:
        results.set_beside(args.run, args.beside)
    print(report.write(args.run))


def measure(run: Path) -> None:
    """Everything that is measured on a run, into its folder."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    trained = load_model(run)
    decode = DecodeJob()
    evaluate_run(
        trained.job,
        trained.model,
        llm=fetch.locate(trained.job.llm.path) if trained.job.llm else None,
        text_tokenizer=fetch.locate(trained.job.text_tokenizer),
        whisper=fetch.locate(decode.asr),
        decode=decode,
        run_dir=run,
    )


if __name__ == "__main__":
    run_main(main)
