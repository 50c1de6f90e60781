"""How much faster a job's data are read than its model consumes them, and how full its rows are.

    python benchmarks/loader.py --gin_file=taste_pretrain.gin

The loader has one thread. It and the training step take turns on the same batches. Then both run
as in a training run, the loader ahead of the step, to measure how long the step waits for data.
Times are of the wall; what else the machine does slows both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines import fetch
from slm_jax import config
from slm_jax.data.ahead import Reading
from slm_jax.data.loader import Loader
from slm_jax.evaluation.tokenizer_report import table
from slm_jax.training import partitioning, setup, weights
from slm_jax.training.job import TrainJob

FAR = 1_000_000
COLUMNS = (128, 256, 512, 1024, 2048)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    job, args = config.from_flags("TrainJob", parser, argv)
    llm = fetch.locate(job.llm.path) if job.llm else None
    job = dataclasses.replace(job.resolve(llm), reading=Reading(threads=1))
    loader = job.loader("train")
    began = time.perf_counter()
    next(loader.iterate(FAR))
    print(f"batch {FAR:,} after {time.perf_counter() - began:.3f} s")
    fill(job)
    program = setup.make(job)
    with jax.set_mesh(program.mesh):
        speed(program, loader, llm, args.steps)


def fill(job: TrainJob) -> None:
    """A table of how full rows of several lengths are."""
    lines = []
    for columns in sorted({*COLUMNS, job.seq_len}):
        parts = dataclasses.replace(job, seq_len=columns).loader("train").summary()
        for name, part in parts.items():
            shares = [f"{part[key]:.1%}" for key in ("fill", "possible")]
            lines.append([name, str(columns), *shares, f"{part['skipped']} of {part['records']}"])
    head = ["dataset", "columns a row", "filled", "at best", "records too long"]
    print(table(head, lines), flush=True)


def speed(program: setup.Program, loader: Loader, llm: Any, steps: int) -> None:
    """The rates of loader and step, and the wait of one for the other."""
    job, mesh = program.job, program.mesh
    state = weights.initial(program, llm, None)
    reference = weights.reference(program, llm)

    def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return partitioning.put_batch(batch, mesh, job.batch_size)

    clock, used = time.perf_counter(), time.process_time()
    compiled = program.step.lower(state, place(loader.batch(0)), reference).compile()
    clock, used = time.perf_counter() - clock, time.process_time() - used
    cores = len(os.sched_getaffinity(0))
    print(f"step compiled in {clock:.0f} s on {cores} cores, {used:.0f} s of their time")
    read, ran, tokens = [], [], 0
    for at in range(steps):
        began = time.perf_counter()
        batch = loader.batch(at)
        read.append(time.perf_counter() - began)
        tokens += int((batch["segment_ids"] > 0).sum())
        placed = jax.block_until_ready(place(batch))
        began = time.perf_counter()
        state, measured = compiled(state, placed, reference)
        jax.block_until_ready(measured)
        ran.append(time.perf_counter() - began)
    each = tokens / steps
    made, consumed = (each / statistics.median(times) for times in (read, ran))
    waited = 0.0
    with contextlib.closing(loader.iterate(0, steps)) as batches:
        placed = place(next(batches))
        began = time.perf_counter()
        for at in range(steps):
            state, measured = compiled(state, placed, reference)
            asked = time.perf_counter()
            placed = place(next(batches)) if at + 1 < steps else placed
            waited += time.perf_counter() - asked
            jax.block_until_ready(measured)
        whole = time.perf_counter() - began
    print(f"loader, one thread: {made:,.0f} tokens/s; step: {consumed:,.0f} tokens/s; "
          f"{made / consumed:.0f} times as many")  # fmt: skip
    print(f"both: {tokens / whole:,.0f} tokens/s, {waited / whole:.2%} of the time spent waiting")


if __name__ == "__main__":
    main()
