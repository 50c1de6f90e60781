"""Trains what speaks units: durations, mels and pitch of them, and a vocoder.

python launch/train_unit_vocoder.py --gin_file=unit_vocoder.gin [--gin.UNITS=path/to/units]

Stages, schedules and data are in the gin file. The same command continues a run that was stopped;
the finished unit vocoder is RUN/unit_vocoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from data_pipelines import fetch
from slm_jax import config
from slm_jax.data.registry import open_recordings
from slm_jax.errors import run_main
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.spoken_units import load_units
from slm_jax.training.unit_vocoder_job import train


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Trains what speaks units.")
    job, _ = config.from_flags("UnitVocoderJob", parser, argv)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    print(config.dump(job, defaults=False), flush=True)
    records, held_out = open_recordings(job.datasets)
    job.run_dir.mkdir(parents=True, exist_ok=True)
    (job.run_dir / "config.gin").write_text(config.dump(job), encoding="utf-8")
    units = load_units(job.units, job.whisper, fetch.locate)
    print(f"unit vocoder: {train(job, records, held_out, units)}")


if __name__ == "__main__":
    run_main(main)
