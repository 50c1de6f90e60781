"""Does the host's memory grow with every save?

python benchmarks/checkpoint_memory.py

Trains nothing: saves a changing state as the trainer does, and prints the resident memory of the
process and the open files as it goes. What is printed is in docs/training.md.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.training import optimizer
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.optimizer import Optimizer


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=30.0, help="of the state")
    options = parser.parse_args()

    layers, width = 12, int((options.megabytes * 1e6 / 4 / 3 / 12) ** 0.5)
    draw = np.random.default_rng(0)
    kernels = draw.standard_normal((layers, width, width)).astype(np.float32)
    params = {f"layer_{n}": {"kernel": jnp.asarray(kernel)} for n, kernel in enumerate(kernels)}
    update = optimizer.make(Optimizer(), options.saves)
    state = {"params": params, "opt": update.init(params), "step": jnp.int32(0)}
    step = jax.jit(lambda now: jax.tree.map(lambda x: x + 1, now), donate_argnums=0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    print(f"state {size:.0f} MB in {len(jax.tree.leaves(state))} arrays")

    history, began = [], time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder), Checkpoints(every=1, keep=2)) as store,
    ):
        for number in range(1, options.saves + 1):
            state = step(state)
            store.save(state, number, {"config": "# as long as a real one\n" * 100})
            store.wait()
            gc.collect()
            history.append(resident())
            if number in (1, 2, 5, 10) or number % 20 == 0:
                print(f"save {number:4d}: {history[-1]:8.1f} MB, {open_files()} open files")
    seconds = (time.monotonic() - began) / options.saves
    half = history[len(history) // 2 :]
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    print(f"over the second half {slope * 1e3:+.1f} kB a save; {seconds:.2f} s a save")


if __name__ == "__main__":
    main()
