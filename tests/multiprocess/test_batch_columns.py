"""Batches over two processes of four devices, where one holds only some columns of its rows."""

import os
import socket
import subprocess
import sys

import pytest

from slm_jax.paths import REPO
from slm_jax.training.distributed import VARIABLES

PROCESS = """
import jax
import numpy as np
from slm_jax.training import distributed, partitioning
from slm_jax.training.partitioning import Parallel

distributed.initialize()
whole = {"tokens": np.arange(8 * 3 * 16).reshape(8, 3, 16), "seeds": np.arange(8)}
held = {}
for parallel in (Parallel(data=8), Parallel(fsdp=2, context=4), Parallel(context=8),
                 Parallel(tensor=2, context=4), Parallel(slices=2, fsdp=2, context=2)):
    mesh = partitioning.make_mesh(parallel)
    rows = partitioning.local_rows(mesh, 8)
    placed = partitioning.put_batch({name: x[rows] for name, x in whole.items()}, mesh, 8)
    for name, x in placed.items():
        assert x.shape == whole[name].shape
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[name][shard.index])
    columns = {shard.index[2].start or 0 for shard in placed["tokens"].addressable_shards}
    print(len(rows), "rows, columns from", sorted(columns))
"""


@pytest.mark.slow
def test_each_process_makes_whole_rows_and_places_its_columns():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            cwd=REPO,
            env=os.environ
            | dict(zip(VARIABLES, (address, "2", str(index)), strict=True))
            | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    told = [[line for line in output.splitlines() if "rows" in line] for output in outputs]
    assert told[0][:2] == ["4 rows, columns from [0]", "4 rows, columns from [0, 4, 8, 12]"]
    assert [lines[2] for lines in told] == [
        "8 rows, columns from [0, 2, 4, 6]",
        "8 rows, columns from [8, 10, 12, 14]",
    ]
