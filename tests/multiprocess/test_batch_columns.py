"""Batches over several processes: each makes rows of its own, and places its columns of them."""

import jax
import processes
import pytest
import tiny_job

from slm_jax import config
from slm_jax.training.digest import digest

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
LOADING = """
import sys
import jax
from slm_jax import config
from slm_jax.training import distributed, partitioning
from slm_jax.training.digest import digest

job = config.load([sys.argv[1]])
distributed.initialize()
mesh = partitioning.make_mesh(job.parallel)
rows = partitioning.local_rows(mesh, job.batch_size)
with jax.set_mesh(mesh):
    for start, stop in ((0, 3), (3, 6)):  # begun again on the way
        for batch in job.loader("train").iterate(start, stop, rows):
            placed = partitioning.put_batch(batch, mesh, job.batch_size)
            print("batch", len(rows), int(jax.jit(digest)(placed)))
"""


def outputs(started):
    found = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), found
    return [output.splitlines() for output in found]


@pytest.mark.slow
def test_each_process_makes_whole_rows_and_places_its_columns():
    found = outputs(processes.start_scripts(PROCESS, 2, 4))
    told = [[line for line in lines if "rows" in line] for lines in found]
    assert told[0][:2] == ["4 rows, columns from [0]", "4 rows, columns from [0, 4, 8, 12]"]
    assert [lines[2] for lines in told] == [
        "8 rows, columns from [0, 2, 4, 6]",
        "8 rows, columns from [8, 10, 12, 14]",
    ]


@pytest.mark.slow
def test_four_processes_have_the_batches_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    tiny_job.write_data(tmp_path / "data")
    (tmp_path / "job.gin").write_text(tiny_job.gin(tmp_path / "data", tmp_path / "runs"))
    found = outputs(processes.start_scripts(LOADING, 4, 1, tmp_path / "job.gin"))
    loader = config.load([tmp_path / "job.gin"]).loader("train")
    alone = [f"batch 2 {int(jax.jit(digest)(loader.batch(step)))}" for step in range(6)]
    for lines in found:
        assert [line for line in lines if line.startswith("batch")] == alone
