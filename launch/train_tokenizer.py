"""Trains the TASTE tokenizer from nothing.

python launch/train_tokenizer.py --gin_file=taste_tokenizer.gin

Stages, schedules and data are in the gin file. The same command continues a run that was stopped;
the finished tokenizer is RUN/taste, to be given as `--gin.TASTE=RUN/taste` to the main job.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from data_pipelines import fetch
from slm_jax import config
from slm_jax.data.registry import get
from slm_jax.errors import run_main
from slm_jax.paths import cache_dir
from slm_jax.training.taste_job import train


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Trains the TASTE tokenizer.")
    job, _ = config.from_flags("TasteJob", parser, argv)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    print(config.dump(job, defaults=False), flush=True)
    families = ("audio", "words")
    datasets, held_out = {}, []
    for name in dict.fromkeys(job.datasets):
        opened = get(name).open(families)
        datasets[name] = list(opened.split("train", families))
        held_out += opened.split("validation", families)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    (job.run_dir / "config.gin").write_text(config.dump(job), encoding="utf-8")
    whisper, pronunciations = fetch.locate(job.whisper), fetch.locate(job.pronunciations)
    print(f"tokenizer: {train(job, datasets, held_out, whisper, pronunciations)}")


if __name__ == "__main__":
    run_main(main)
