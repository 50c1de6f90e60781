"""Trains supervised units: codes within a Whisper's encoder that its decoder can read.

python launch/train_asr_units.py --gin_file=asr_units.gin

Schedule and data are in the gin file. The same command continues a run that was stopped; the
finished units are RUN/asr_units, and the word error of what is read from them is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipelines import fetch
from slm_jax import config
from slm_jax.audio.decode import load
from slm_jax.data.registry import open_recordings
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.errors import run_main
from slm_jax.evaluation.wer import word_error_rate
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.asr_units import AsrUnits
from slm_jax.tokenizers.asr_units_network import LONGEST, RATE
from slm_jax.tokenizers.tokenizer import stack
from slm_jax.training.asr_units_job import AsrUnitsJob, train


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Trains supervised units.")
    job, _ = config.from_flags("AsrUnitsJob", parser, argv)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    print(config.dump(job, defaults=False), flush=True)
    records, held_out = open_recordings(job.datasets, (AUDIO, WORDS))
    job.run_dir.mkdir(parents=True, exist_ok=True)
    (job.run_dir / "config.gin").write_text(config.dump(job), encoding="utf-8")
    whisper = fetch.locate(job.whisper)
    folder = train(job, records, held_out, whisper)
    print_word_error(job, held_out, whisper, folder)
    print(f"ASR units: {folder}")


def print_word_error(
    job: AsrUnitsJob, held_out: Sequence[Record], whisper: Path, folder: Path
) -> None:
    """Of what is read from units, beside what this Whisper hears in the audio."""
    pairs = [(load(record[AUDIO].flac), record[WORDS].text) for record in held_out]
    pairs = [(audio, text) for audio, text in pairs if len(audio) <= LONGEST * RATE]
    if not pairs:
        return
    audios, texts = zip(*pairs, strict=True)
    units = AsrUnits.load(whisper, folder)
    read = units.read(*units.encode(*stack(audios, np.float32)), job.language)
    heard = Asr(whisper).transcribe(audios, job.language, "bucket", word_times=False)
    ours, theirs = word_error_rate(texts, read), word_error_rate(texts, [t.text for t in heard])
    print(
        f"held-out word error: {ours.wer:.1%} [{ours.low:.1%}, {ours.high:.1%}] of {ours.words} "
        f"words from units, {theirs.wer:.1%} [{theirs.low:.1%}, {theirs.high:.1%}] from audio"
    )


if __name__ == "__main__":
    run_main(main)
