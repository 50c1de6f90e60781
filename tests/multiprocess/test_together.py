"""Two processes that end together: one is told to while it compiles, or its disk is full."""

import signal
import time

import processes
import pytest

from slm_jax.training import checkpoint, inventory
from slm_jax.training.distributed import PREEMPTED

# Process 0 compiles for ever.
COMPILING = """
import time
import jax
from slm_jax.training import distributed

class Endless:
    def lower(self, x):
        return self

    def compile(self):
        print("compiles", flush=True)
        time.sleep(3600)

distributed.initialize()
with distributed.Preemption() as preemption:
    function = Endless() if distributed.is_main() else jax.jit(lambda x: x + 1)
    print("begins", flush=True)
    preemption.compile((function, 1.0))
"""

# Saves 1, 2, ... until it cannot; from the third on the writes of one process fail half way.
SAVING = """
import pathlib, resource, sys
import jax
import numpy as np
from slm_jax.errors import run_main
from slm_jax.training import distributed, partitioning
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.partitioning import Parallel

def main():
    whole = np.random.default_rng(0).random((2, 1 << 17), np.float32)
    placed = jax.sharding.NamedSharding(
        partitioning.make_mesh(Parallel()), jax.sharding.PartitionSpec("data")
    )
    weight = jax.make_array_from_callback(whole.shape, placed, whole.__getitem__)
    state = {"params": {"w": weight}, "opt": {}, "step": weight}
    with Store(pathlib.Path(sys.argv[1]), Checkpoints(every=1, keep=5)) as store:
        for step in range(1, 9):
            if step == 3 and jax.process_index() == int(sys.argv[2]):
                store.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            store.save(state, step, {"config": ""})

distributed.initialize()
run_main(main)
"""


@pytest.fixture
def started():
    """Processes of a test, which do not outlive it."""
    held = []
    yield held
    for process in held:
        process.kill()


@pytest.mark.slow
def test_told_while_the_other_compiles_both_end_at_once(started):
    started += processes.start_scripts(COMPILING, 2, 1)
    first, second = started
    while first.stdout.readline() != "compiles\n":
        assert first.poll() is None
    second.send_signal(signal.SIGTERM)  # to the one that waits for the other
    told = time.monotonic()
    for process in started:
        said = processes.finish(process, PREEMPTED)
        assert "stopped by SIGTERM before a step was done: nothing is lost" in said
    assert time.monotonic() - told < 15


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_at_one_is_one_error_at_both_and_older_checkpoints_survive(
    full, started, tmp_path
):
    """A file size limit of one process stands in for its full disk."""
    started += processes.start_scripts(SAVING, 2, 1, tmp_path, full)
    outputs = [processes.finish(process, 2) for process in started]
    for output in outputs:
        (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "no room to save a checkpoint" in told and "older checkpoints are intact" in told
    assert f"(process {full} of 2): " in outputs[1 - full]
    folder = tmp_path / checkpoint.DIRECTORY
    assert checkpoint.steps_in(folder) == [1, 2]
    assert [inventory.damage(folder / str(step)) for step in (1, 2)] == [None, None]
