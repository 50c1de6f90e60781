"""Speech for volume: sentences read by a Piper voice into a corpus folder with a manifest.

    pip install 'slm_jax[piper]'
    python -m data_pipelines.piper sentences.txt --out spoken/
    python -m data_pipelines.build spoken --corpus jsonl --path spoken/manifest.jsonl

One sentence a line; sentences that the manifest has are skipped, so the command can be repeated
after a crash or with more lines. Piper is GPL-3.0: a tool that makes data, never imported by
slm_jax.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import fetch
from data_pipelines.progress import Progress
from slm_jax.audio import decode
from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError, run_main
from slm_jax.streams import fingerprint

MANIFEST = "manifest.jsonl"
RATES = (0.85, 1.2)  # length scales: how fast a sentence is read is drawn from its text


def synthesise(sentences: Path, out: Path, voice: str = "piper_voice") -> Path:
    """Reads every line of a text file aloud.

    Args:
      sentences: UTF-8 text, one sentence a line.
      out: folder for <id>.flac (16 kHz) and manifest.jsonl, which grows line by line.
      voice: "piper_voice" (fetched), or a folder or .onnx file with its .onnx.json.

    Returns:
      The manifest, a corpus of kind "jsonl".

    Raises:
      UserError: Piper is not installed, or there are no sentences or no voice.
    """
    if not sentences.is_file():
        raise UserError(f"there is no file {sentences}", "give a text file, one sentence a line")
    lines = dict.fromkeys(
        " ".join(line.split()) for line in sentences.read_text("utf-8").splitlines()
    )
    lines.pop("", None)
    if not lines:
        raise UserError(f"{sentences} has no sentences", "write one sentence a line")
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST
    done = {entry["id"] for entry in _entries(manifest)}
    todo = [line for line in lines if _id(line) not in done]
    if not todo:
        return manifest
    path = _voice_file(fetch.locate(voice))
    speaker, licence = path.stem, fetch.licence(voice)
    piper = _load(path)
    with (
        open(manifest, "a", encoding="utf-8") as file,
        Progress("piper", len(lines), len(lines) - len(todo)) as progress,
    ):
        for line in todo:
            audio = _speak(piper, line)
            name = f"{_id(line)}.flac"
            (out / name).write_bytes(decode.encode_flac(audio))
            seconds = len(audio) / AUDIO_RATE
            entry = {"id": _id(line), "audio": name, "text": line, "speaker": speaker}
            entry |= {"licence": licence, "source": f"piper/{speaker}", "duration": seconds}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            progress.advance(1, seconds)
    return manifest


def _entries(manifest: Path) -> Iterator[dict[str, Any]]:
    """The entries that were written whole; a line cut by a crash is cut off the file."""
    if not manifest.exists():
        return
    data = manifest.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(manifest, "rb+") as file:
            file.truncate(len(whole))
    for line in whole.decode("utf-8").splitlines():
        yield json.loads(line)


def _id(line: str) -> str:
    return fingerprint(line)


def _voice_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.onnx"))
    if not found:
        raise UserError(f"{path} holds no Piper voice", "give a folder with NAME.onnx")
    return found[0]


def _load(path: Path) -> Any:
    try:
        from piper import PiperVoice
    except ImportError as error:
        raise UserError("Piper is not installed", "pip install 'slm_jax[piper]'") from error
    return PiperVoice.load(path)


def _speak(piper: Any, line: str) -> np.ndarray:
    """float32 [n] at 16 kHz; Piper draws its noise itself, so that no two runs sound the same."""
    from piper import SynthesisConfig

    config = SynthesisConfig(length_scale=random.Random(line).uniform(*RATES))
    chunks = list(piper.synthesize(line, config))
    if not chunks:
        raise UserError(f"Piper makes no sound of {line!r}", "remove that line")
    audio = np.concatenate([chunk.audio_float_array for chunk in chunks])
    return resample(audio.astype(np.float32), chunks[0].sample_rate, AUDIO_RATE)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Read sentences aloud with a Piper voice.")
    parser.add_argument("sentences", type=Path, help="text file, one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--voice", default="piper_voice", help="folder or .onnx file")
    arguments = parser.parse_args()
    manifest = synthesise(arguments.sentences, arguments.out, arguments.voice)
    print(f"{manifest}: complete", file=sys.stderr)


if __name__ == "__main__":
    run_main(_main)
