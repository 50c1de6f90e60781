"""Of two processes that train together, one reads from storage that hangs."""

import socket

import processes
import pytest
import tiny_job

from slm_jax.data import shards

# Read by Python at start: in process 1 alone a read of speech ids takes for ever.
HANGING = """
import itertools, os, threading
from slm_jax.data import shards
if os.environ["JAX_PROCESS_ID"] == "1":
    reads, read = itertools.count(), shards.ShardReader.read

    def hanging(self, index):
        if self.path.parent.name == "taste" and next(reads) == 400:
            threading.Event().wait()
        return read(self, index)

    shards.ShardReader.read = hanging
"""


@pytest.mark.slow
def test_the_host_that_hangs_says_where_it_reads(tmp_path):
    tiny_job.write_data(tmp_path / "data")
    settings = {"TrainJob.steps": 10_000, "TrainJob.eval_every": 10_000, "Reading.warn": 3.0,
                "Reading.stop": 8.0}  # fmt: skip
    (tmp_path / "job.gin").write_text(
        tiny_job.gin(tmp_path / "data", tmp_path / "runs", **settings)
    )
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    modules = processes.as_users_have(tmp_path, tmp_path)
    started = processes.start_two(tmp_path / "job.gin", tmp_path, **modules)
    try:
        said = []
        for line in started[1].stdout:  # until it gives up
            said.append(line)
            if line.startswith("error: "):
                break
    finally:
        for process in started:
            process.kill()
    shard = tmp_path / "data" / "{text-tiny,taste}" / shards.shard_name("train", 0, 1)
    host = f"{socket.gethostname()} (process 1 of 2)"
    told = [line for line in said if line.startswith(f"{host} has waited 3 s for batch ")]
    assert told and str(shard) in told[-1], said
    assert said[-1].startswith(f"error: {host} has waited 8 s for batch ")
    assert str(shard) in said[-1]
