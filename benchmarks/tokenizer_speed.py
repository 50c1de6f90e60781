"""Speed of our tokenizers beside the PyTorch ones, on the same random weights of published sizes.

    python benchmarks/tokenizer_speed.py --seconds 10 --repeats 10

Ours and theirs take turns, so that whatever else the machine does slows both; a ratio is that of
neighbours in time. Both have as many threads as this process has cores (`taskset -c 0,1` for two).
Compilation is left out, copies to and from the device are in. On a GPU both compute in full
float32. SNAC's reference is `pip install snac`; its decoder draws other noise in every call.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from tokenizer_models import DEVICE, MODELS, Job, Pair

from slm_jax.evaluation.tokenizer_report import table

STEPS = 25  # frames of a stream that are timed after its first chunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio in a row")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))  # as many as XLA takes
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"{machine()}; {threads} threads; {args.rows} x {args.seconds:g} s\n")
    head = ["tokenizer", "ours, × real time", "PyTorch, × real time", "ratio", "the same"]
    print(table(head, []), flush=True)
    streams = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            pairs, codec = MODELS[name](Job(Path(folder), args.seconds, args.rows))
        for pair in pairs:
            print(f"| {' | '.join(line(pair, args.repeats))} |", flush=True)
        if hasattr(codec, "encode_step"):
            streams.append(stream(name, codec))
    if streams:
        head = ["stream", "waits for, ms", "and computes, ms", "then a frame, ms", "× real time"]
        print(f"\n{table(head, streams)}")


def machine() -> str:
    """What computes, with its units for vectors and matrices, and with which versions."""
    chip = torch.cuda.get_device_name() if DEVICE == "cuda" else "a CPU"
    info = Path("/proc/cpuinfo")
    if DEVICE == "cpu" and info.exists():
        lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        fields = {key.strip(): value.strip() for key, value in lines}
        units = [unit for unit in ("avx2", "avx512f", "amx_tile") if unit in fields["flags"]]
        chip = " ".join([fields["model name"], *units])
    names = ("jax", "jaxlib", "torch", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{chip}; {jax.devices()} and {DEVICE}; {versions}"


def line(pair: Pair, repeats: int) -> list[str]:
    """A row of the table: medians, and quartiles of the ratio."""
    calls = [call for call in (pair.ours, pair.theirs) if call]
    made = [call() for call in calls]
    spent = np.empty((repeats, len(calls)))
    for repeat in range(repeats):
        for i in range(len(calls))[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            calls[i]()
            spent[repeat, i] = time.perf_counter() - began
    speeds = [f"{speed:.1f}" for speed in pair.seconds / np.median(spent, axis=0)]
    if pair.theirs is None:
        return [pair.what, *speeds, "", "", ""]
    middle, low, high = np.percentile(spent[:, 1] / spent[:, 0], (50, 25, 75))
    return [pair.what, *speeds, f"{middle:.2f} ({low:.2f} to {high:.2f})", agreement(*made)]


def agreement(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The share of equal codes, or the largest difference beside the standard deviation."""
    count = min(ours.shape[1], theirs.shape[1])  # of two paddings to whole frames
    ours, theirs = ours[:, :count], theirs[:, :count]
    if ours.dtype.kind == "i":
        return f"{np.mean(ours == theirs):.2%} of codes"
    return f"within {np.abs(ours - theirs).max():.0e} of {theirs.std():.0e}"


def stream(name: str, codec: Any) -> list[str]:
    """From a stream's first samples to its first sound, and frame by frame from then on."""
    first, frame, rate = getattr(codec, "first_frames", 1), codec.frame, codec.sample_rate
    audio = np.random.default_rng(0).normal(size=(1, (first + STEPS) * frame)).astype(np.float32)
    ends = [0, *range(first * frame, (first + STEPS) * frame + 1, frame)]
    chunks = [audio[:, begin:end] * 0.1 for begin, end in itertools.pairwise(ends)]
    for _ in range(2):  # the first round compiles
        state, spent = codec.init_state(1), []
        for chunk in chunks:
            began = time.perf_counter()
            codes, state = codec.encode_step(state, chunk)
            sound, state = codec.decode_step(state, codes)
            sound.block_until_ready()
            spent.append(time.perf_counter() - began)
    waits = (first * frame + codec.delay) / rate
    each = float(np.median(spent[1:]))
    times = [f"{1e3 * seconds:.1f}" for seconds in (waits, spent[0], each)]
    return [name, *times, f"{frame / rate / each:.1f}"]


if __name__ == "__main__":
    main()
