"""CPU time of the audio decoders on the same files, as a ratio to soundfile.

  python benchmarks/audio_decoders.py [--seconds 20] [--folder AUDIO]

Without a folder it makes its own files (noisy tone, 44.1 kHz stereo; Opus 48 kHz). Decodes to
16 kHz mono, resampling (soxr in every case) included. The tfio column counts the worker's CPU
time as well and appears when $SLM_JAX_TFIO_PYTHON is set. Best of five.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import soundfile

from slm_jax.audio import decode, tfio_client
from slm_jax.audio.errors import AudioError

FORMS = {
    "wav": ("WAV", "PCM_16", 44_100),
    "flac": ("FLAC", "PCM_16", 44_100),
    "mp3": ("MP3", "MPEG_LAYER_III", 44_100),
    "ogg": ("OGG", "VORBIS", 44_100),
    "opus": ("OGG", "OPUS", 48_000),
}


def made(seconds: float) -> dict[str, bytes]:
    files = {}
    for name, (format, subtype, rate) in FORMS.items():
        t = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * (200 + 20 * t) * t)
        noise = np.random.default_rng(0).normal(0, 0.03, (len(t), 2))
        buffer = io.BytesIO()
        soundfile.write(buffer, tone[:, None] + noise, rate, format=format, subtype=subtype)
        files[name] = buffer.getvalue()
    return files


def cpu_seconds(process: int | None) -> float:
    """CPU time of this process, and of another one by /proc/PID/stat."""
    own = time.process_time()
    if process is None:
        return own
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def best(source: bytes | Path, decoder: str, runs: int = 5) -> float | None:
    """Least CPU seconds to decode; None if the decoder cannot read the format."""
    try:
        decode.load(source, decoder=decoder)
    except AudioError:
        return None
    worker = tfio_client.shared().process_id if decoder == "tfio" else None
    times = []
    for _ in range(runs):
        start = cpu_seconds(worker)
        decode.load(source, decoder=decoder)
        times.append(cpu_seconds(worker) - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the files it makes")
    parser.add_argument("--folder", type=Path, help="use the audio files of this folder instead")
    args = parser.parse_args()
    decoders = ["soundfile", "pyav"]
    if os.environ.get(tfio_client.PYTHON_VARIABLE):
        decoders.append("tfio")
    if args.folder:
        files = {p.name: p for p in sorted(args.folder.iterdir()) if p.is_file()}
    else:
        files = made(args.seconds)

    print("| file | audio s | soundfile, x real time | " + " | ".join(decoders) + " |")
    print("|---|---|---|" + "---|" * len(decoders))
    for name, source in files.items():
        times = {decoder: best(source, decoder) for decoder in decoders}
        base = times["soundfile"]
        length = len(decode.load(source)) / 16_000
        speed = f"{length / base:.0f}" if base else "-"
        cells = [f"{t / base:.2f}" if t and base else "-" for t in times.values()]
        print(f"| {name} | {length:.1f} | {speed} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
