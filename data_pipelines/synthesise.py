"""Speech for volume: sentences read by a synthetic voice into a corpus folder with a manifest.

    pip install 'slm_jax[synthesis]'
    python -m data_pipelines.synthesise sentences.txt --voice kokoro:jf_alpha --out spoken/alpha
    python -m data_pipelines.build alpha --corpus jsonl --path spoken/alpha/manifest.jsonl

One sentence a line; sentences that the manifest has are skipped, so the command can be repeated
after a crash or with more lines. The voices: `data_pipelines/voices.py`.
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

from data_pipelines.progress import Progress
from data_pipelines.voices import Voice, open_voice
from slm_jax.audio import decode
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError, run_main
from slm_jax.streams import fingerprint

MANIFEST = "manifest.jsonl"
RATES = (0.8, 1.25)  # how many times as long as normal speech; drawn from the sentence's text
LEVEL = 0.1  # RMS, so that no voice is louder than another
PEAK = 0.99


def synthesise(sentences: Path, out: Path, voice: str, rate: float | None = None) -> Path:
    """Reads every line of a text file aloud.

    Args:
      sentences: UTF-8 text, one sentence a line.
      out: folder for <id>.flac (16 kHz) and manifest.jsonl, which grows line by line.
      voice: what `voices.open_voice` takes.
      rate: how many times as long as normal speech; None draws it from each line's text.

    Returns:
      The manifest, a corpus of kind "jsonl".

    Raises:
      UserError: there are no sentences or no such voice, or its engine is not installed.
    """
    if rate is not None and rate <= 0:
        raise UserError(f"speech cannot be {rate} times as long", "give a rate above 0")
    lines = _lines(sentences)
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST
    done = {entry["id"] for entry in _entries(manifest)}
    todo = [line for line in lines if fingerprint(line) not in done]
    if not todo:
        return manifest
    reader = open_voice(voice)
    with (
        open(manifest, "a", encoding="utf-8") as file,
        Progress(reader.source, len(lines), len(lines) - len(todo)) as progress,
    ):
        for line in todo:
            audio, used_rate = read_aloud(reader, line, rate)
            name = f"{fingerprint(line)}.flac"
            (out / name).write_bytes(decode.encode_flac(audio))
            entry = {
                "id": fingerprint(line),
                "audio": name,
                "text": line,
                "speaker": reader.speaker,
                "rate": round(used_rate, 4),
                "licence": reader.licence,
                "source": reader.source,
                "duration": len(audio) / AUDIO_RATE,
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            progress.advance(1, entry["duration"])
    return manifest


def read_aloud(voice: Voice, line: str, rate: float | None = None) -> tuple[np.ndarray, float]:
    """Reads one sentence, choosing by its text alone whatever is not given.

    Returns:
      float32 [n] at 16 kHz of RMS LEVEL (peaks clipped), and the rate that it was read at.
    """
    rng = random.Random(line)
    drawn = rng.uniform(*RATES)  # drawn even if it is given: what follows shall not change with it
    used = drawn if rate is None else rate
    return levelled(voice.speak(line, used, rng)), used


def levelled(audio: np.ndarray) -> np.ndarray:
    """Audio [n] brought to RMS LEVEL, clipped at PEAK; silence stays silence."""
    rms = np.sqrt(np.mean(audio**2))
    return np.clip(audio * (LEVEL / max(1e-4, rms)), -PEAK, PEAK)


def _lines(sentences: Path) -> list[str]:
    if not sentences.is_file():
        raise UserError(f"there is no file {sentences}", "give a text file, one sentence a line")
    lines = dict.fromkeys(
        " ".join(line.split()) for line in sentences.read_text("utf-8").splitlines()
    )
    lines.pop("", None)
    if not lines:
        raise UserError(f"{sentences} has no sentences", "write one sentence a line")
    return list(lines)


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


def _main() -> None:
    parser = argparse.ArgumentParser(description="Read sentences aloud with a synthetic voice.")
    parser.add_argument("sentences", type=Path, help="text file, one sentence a line")
    parser.add_argument("--voice", required=True, help="piper, kokoro:NAME[+NAME...], flite:NAME")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--rate", type=float, help="times as long as normal; default: by the text")
    arguments = parser.parse_args()
    manifest = synthesise(arguments.sentences, arguments.out, arguments.voice, arguments.rate)
    print(f"{manifest}: complete", file=sys.stderr)


if __name__ == "__main__":
    run_main(_main)
