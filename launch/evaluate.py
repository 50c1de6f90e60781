"""Measures a finished run and writes its report, or writes the report again.

python launch/evaluate.py --run=runs/NAME [--report_only]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import fetch
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import load_model
from slm_jax.errors import run_main
from slm_jax.evaluation import report
from slm_jax.evaluation.run import evaluate_run


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measures a finished run and writes its report.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="made by training")
    parser.add_argument("--report_only", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    if args.report_only:
        print(report.write(args.run))
        return
    trained = load_model(args.run)
    decode = DecodeJob()
    path = evaluate_run(
        trained.job,
        trained.model,
        llm=fetch.locate(trained.job.llm.path) if trained.job.llm else None,
        text_tokenizer=fetch.locate(trained.job.text_tokenizer),
        whisper=fetch.locate(decode.asr),
        decode=decode,
        run_dir=args.run,
    )
    print(path)


if __name__ == "__main__":
    run_main(main)
