"""Lets a trained checkpoint speak.

python launch/decode.py --gin_file=decode.gin --gin.CHECKPOINT=runs/NAME --prompt_audio=x.wav
python launch/decode.py --gin_file=decode.gin --gin.CHECKPOINT=runs/NAME --prompt_text="Please"
python launch/decode.py --gin_file=decode.gin --reconstruct --prompt_audio=x.wav

Writes the speech to --output (a .wav) and text and tokens beside it (the same name with .json).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines import fetch
from slm_jax import config
from slm_jax.audio import decode as audio_files
from slm_jax.decoding.continuation import Continuation, Continuer, reconstruct
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import check_taste, load_model, make_continuer
from slm_jax.errors import UserError, run_main
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.asr import Asr, Transcript
from slm_jax.tokenizers.taste import RATE, Taste
from slm_jax.tokenizers.text import TextTokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Lets a trained checkpoint speak.")
    parser.add_argument("--prompt_audio", type=Path, metavar="FILE", help="continue this speech")
    parser.add_argument("--prompt_text", metavar="TEXT", help="speak and continue this text")
    parser.add_argument(
        "--reconstruct", action="store_true", help="pass --prompt_audio through the tokenizer only"
    )
    parser.add_argument("--output", type=Path, default=Path("continuation.wav"), metavar="WAV")
    job, args = config.from_flags("DecodeJob", parser, argv)
    _check(job, args)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    audio = audio_files.load(args.prompt_audio) if args.prompt_audio is not None else None
    trained = None if args.reconstruct else load_model(job.checkpoint, job.average)
    whisper = fetch.locate(job.asr)
    pronunciations = fetch.locate(job.pronunciations)
    taste = Taste.load(whisper, pronunciations, job.taste or (trained and trained.job.taste))
    if trained is not None:
        check_taste(trained, taste)
    if audio is not None:
        heard = _hear(Asr(whisper), audio, args.prompt_audio, job.language)
    if trained is None:
        (speech,) = reconstruct(taste, [audio], [heard.words])
        _save(args.output, speech, {"prompt": heard.text})
        return
    tokenizer = TextTokenizer.load(fetch.locate(trained.job.text_tokenizer))
    layout = trained.job.system.layout
    continuer = make_continuer(trained.model, layout, tokenizer, taste, job)
    if audio is not None:
        (prompt,) = continuer.hear([audio], [heard.words])
    else:
        prompt = continuer.read(args.prompt_text)
    (said,) = continuer.write([prompt], job.seed)
    (speech,) = continuer.speak([said])
    _save(args.output, speech, _described(said, continuer))


def _check(job: DecodeJob, args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is loaded."""
    given = [flag for flag in ("prompt_audio", "prompt_text") if getattr(args, flag) is not None]
    if len(given) != 1:
        what = "both --prompt_audio and --prompt_text" if given else "no prompt"
        raise UserError(f"{what} given", "give one of --prompt_audio=FILE and --prompt_text=TEXT")
    if args.reconstruct and args.prompt_audio is None:
        raise UserError("--reconstruct works on audio", "give --prompt_audio=FILE with it")
    if args.prompt_text is not None and not args.prompt_text.strip():
        raise UserError("--prompt_text is empty", "give at least one word")
    if not args.reconstruct and job.checkpoint is None:
        raise UserError("no checkpoint given", "add --gin.CHECKPOINT=runs/NAME")
    if args.output.suffix != ".wav":
        raise UserError(f"--output {args.output} does not end in .wav", "name a .wav file")
    if not args.output.absolute().parent.is_dir():
        raise UserError(f"the folder of --output {args.output} does not exist", "make it first")


def _hear(asr: Asr, audio: np.ndarray, path: Path, language: str) -> Transcript:
    (heard,) = asr.transcribe([audio], language)
    if not heard.words:
        raise UserError(f"no words were heard in {path}", "give a recording of speech")
    return heard


def _described(said: Continuation, continuer: Continuer) -> dict[str, Any]:
    return {
        "prompt": continuer.segmenter.join(said.prompt.words),
        "continuation": said.text,
        "spoken": list(said.words),
        continuer.taste.spec.name: said.codes.tolist(),
    }


def _save(path: Path, speech: np.ndarray, described: dict[str, Any]) -> None:
    """Writes the JSON and then the WAV, each whole or not at all."""
    text = json.dumps(described, ensure_ascii=False, indent=1) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path.with_suffix(".json"))
    audio_files.write_wav(path, speech, RATE)
    print(f"{path}: {len(speech) / RATE:.1f} s; {path.with_suffix('.json')}:\n{text}", end="")


if __name__ == "__main__":
    run_main(main)
