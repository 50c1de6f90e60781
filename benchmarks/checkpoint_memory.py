"""Does the host's memory grow with every save, and whose is it?

python benchmarks/checkpoint_memory.py            # as the trainer saves
python benchmarks/checkpoint_memory.py --orbax    # the same arrays by Orbax alone

Trains nothing: saves a changing state, and prints as it goes what of the process is in memory, what
of that is in use (malloc's own count, Linux with glibc; the rest is kept for the next save) and the
open files. Last, what the conversion of one TensorStore spec to JSON leaves behind, of which a save
makes one an array. What is printed is in docs/training.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from slm_jax.training import optimizer
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.optimizer import Optimizer

MALLINFO = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd",
    "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


LIBC = ctypes.CDLL("libc.so.6")
LIBC.mallinfo2.restype = MallInfo


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def in_use() -> float:
    """MB that malloc has given out and not got back."""
    found = LIBC.mallinfo2()
    return (found.uordblks + found.hblkhd) / 1e6


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def left_by_json(calls: int = 4000) -> float:
    """Bytes that TensorStore keeps of one spec's conversion to JSON."""
    spec = tensorstore.KvStore.Spec({"driver": "memory", "path": "a/"})
    before = 0.0
    for many in (calls // 8, calls):  # what the first ones leave is not looked at
        before = resident()
        for _ in range(many):
            spec.to_json()
        gc.collect()
    return (resident() - before) * 1e6 / calls


def saver(folder: Path, alone: bool) -> tuple[Any, Callable[[Any, int], None]]:
    """A context to be left at the end, and what saves a state."""
    if not alone:
        store = Store(folder, Checkpoints(every=1, keep=2))

        def save(state: Any, number: int) -> None:
            store.save(state, number, {"config": "# as long as a real one\n" * 100})
            store.wait()

        return store, save
    training = ocp.training
    orbax = training.Checkpointer(
        folder,
        save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=training.preservation_policies.LatestN(2),
    )

    def save_alone(state: Any, number: int) -> None:
        parts = {"params": state["params"], "opt": {"state": state["opt"], "step": state["step"]}}
        orbax.save_checkpointables(number, parts, force=True)

    return contextlib.closing(orbax), save_alone


def slope(history: list[float]) -> float:
    """kB a save over the second half."""
    half = history[len(history) // 2 :]
    return np.polyfit(np.arange(len(half)), half, 1)[0] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=30.0, help="of the state")
    parser.add_argument("--orbax", action="store_true", help="without slm_jax's Store")
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

    history, used, began = [], [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        context, save = saver(Path(folder), options.orbax)
        with context:
            for number in range(1, options.saves + 1):
                state = step(state)
                save(state, number)
                gc.collect()
                history.append(resident())
                used.append(in_use())
                if number in (1, 2, 5, 10) or number % 20 == 0:
                    print(
                        f"save {number:4d}: {history[-1]:8.1f} MB, {used[-1]:8.1f} in use, "
                        f"{open_files()} open files",
                        flush=True,
                    )
    seconds = (time.monotonic() - began) / options.saves
    print(
        f"over the second half {slope(history):+.1f} kB a save, {slope(used):+.1f} in use; "
        f"{seconds:.2f} s a save"
    )
    print(f"a spec's conversion to JSON leaves {left_by_json():.0f} bytes")


if __name__ == "__main__":
    main()
