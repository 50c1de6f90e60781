"""Says what a training job takes, before it runs: tokens, steps, memory, days, dollars.

python launch/plan.py --gin_file=taste_pretrain.gin --hours=1e6 --accelerator=v5e-256

With --dataset=NAME in place of --hours, the audio of a dataset (its "train" split) is measured.

python launch/plan.py --aot --gin_file=pods/taste_llama32_1b.gin --accelerator=v5e-16

compiles the job's step for a TPU slice or GPUs, which need not be there (`slm_jax.planning.aot`);
without --accelerator, for the smallest TPU slice that it fits on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from data_pipelines import fetch
from slm_jax import config
from slm_jax.errors import UserError, run_main
from slm_jax.planning import accelerators, aot, speech, table
from slm_jax.planning.plan import Assumed, make
from slm_jax.training.job import BACKBONE_SETTINGS, TrainJob

NAMES = "v5e-256, v5p-128 (cores), h100-64, 2xv5e-256"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if "--aot" in argv:
        return compile_ahead(argv)
    parser = argparse.ArgumentParser(description="Says what a training job takes.")
    add = parser.add_argument
    add("--accelerator", required=True, help=NAMES)
    add("--hours", type=float, help="of audio")
    add("--dataset", help="name or folder of one, to be measured")
    add("--words_per_minute", type=float, default=speech.Pace.words, help="of the --hours")
    add("--ids_per_word", type=float, default=speech.Pace.ids, help="of the text tokenizer")
    add("--utterance", type=float, default=10.0, help="mean seconds of one, of the --hours")
    add("--rate", type=float, help="items a second of streams whose layout does not say it")
    add("--epochs", type=float, default=Assumed.epochs, help="how often the audio is seen")
    add("--mfu", type=float, default=Assumed.mfu, help="share of the chips' peak that is reached")
    add("--price", type=float, help="US dollars a chip and hour, in place of the table's")
    add("--budget", type=float, default=15e12, help="text ids of a text-scale corpus")
    job, args = config.from_flags("TrainJob", parser, argv)
    job = sized(job)
    accelerator = accelerators.parse(args.accelerator)
    try:
        assumed = Assumed(args.mfu, args.price, args.epochs)
        pace = speech.Pace(args.words_per_minute, args.ids_per_word)
    except ValueError as error:
        raise UserError(str(error), "give other flags.") from None
    if (args.hours is None) == (args.dataset is None):
        raise UserError("how much audio there is, is not clear", "give --hours or --dataset.")
    layout = job.system.layout
    if args.dataset is None:
        hours = args.hours
        records = speech.examples(layout, pace, args.utterance, args.rate)
    else:
        hours, records = speech.measured(layout, args.dataset)
        pace = speech.pace(records, pace)
    plan = make(job, accelerator, hours, records, pace, assumed)
    print(table.render(plan, layout, accelerator, assumed, args.budget))


def compile_ahead(argv: Sequence[str]) -> None:
    """The entry point with --aot."""
    jax.config.update("jax_platforms", "cpu")  # what chips are here are left alone
    parser = argparse.ArgumentParser(description="Compiles a job's step for TPUs or GPUs.")
    parser.add_argument("--aot", action="store_true", required=True, help="compile ahead of time")
    parser.add_argument("--accelerator", help=f"{NAMES}; else the smallest TPU slice that does")
    parser.add_argument("--json", type=Path, help="file that the result is written to")
    job, args = config.from_flags("TrainJob", parser, argv)
    job = sized(job)
    found = aot.compile_step(job, args.accelerator) if args.accelerator else aot.smallest(job)
    print(found)
    if args.json:
        said = [flag for flag in argv if not flag.startswith("--json")]
        result = aot.to_json(found, f"python launch/plan.py {shlex.join(said)}")
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def sized(job: TrainJob) -> TrainJob:
    """The job with the sizes of its backbone; those of a gin file need no weights."""
    stated = job.system.model.backbone
    if stated is None:
        return job.resolve(fetch.locate(job.llm.path))
    if job.llm is None:
        return job
    settings = {name: getattr(job.llm, name) for name in BACKBONE_SETTINGS}
    model = dataclasses.replace(job.system.model, backbone=dataclasses.replace(stated, **settings))
    return dataclasses.replace(job, system=dataclasses.replace(job.system, model=model))


if __name__ == "__main__":
    run_main(main)
