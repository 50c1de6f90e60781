"""launch/train.py as two processes of four devices each, over gloo."""

import signal
import socket

import numpy as np
import processes
import pytest
import tiny_job

from slm_jax.training import checkpoint
from slm_jax.training.distributed import PREEMPTED

STEPS = 300
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "kv_heads": "tensor",
         "vocab": "tensor"}  # fmt: skip
SETTINGS = {
    "TrainJob.steps": STEPS,
    "TrainJob.eval_every": STEPS,
    "Checkpoints.every": 100,
    "Parallel.fsdp": 2,
    "Parallel.tensor": 2,
    "Parallel.rules": RULES,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    tiny_job.write_data(root / "data")
    (root / "job.gin").write_text(tiny_job.gin(root / "data", root / "runs", **SETTINGS))
    return root


def start_two(place, *flags):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        processes.start(
            place / "job.gin",
            place,
            *flags,
            devices=4,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


@pytest.mark.slow
def test_two_processes_stop_together_and_train_like_one(place):
    run_dir = place / "runs" / "two"
    first, second = start_two(place, "--gin.TrainJob.name=two")
    processes.wait_for(first, run_dir, 30)
    second.send_signal(signal.SIGTERM)  # the other host must hear of it
    for process in (first, second):
        processes.finish(process, PREEMPTED)
    stopped = int(checkpoint.find_step(run_dir).name)
    assert 30 <= stopped == max(processes.losses(run_dir)) < STEPS

    outputs = [processes.finish(p) for p in start_two(place, "--gin.TrainJob.name=two")]
    assert "step 300/300" in outputs[0]
    assert "step 300/300" not in outputs[1]  # one process speaks for all
    processes.finish(processes.start(place / "job.gin", place, devices=8))
    one, two = (processes.losses(place / "runs" / name) for name in ("tiny", "two"))
    assert list(two) == list(range(1, STEPS + 1))
    for step in (1, 2, 10, stopped, stopped + 1):
        for name, value in one[step].items():
            np.testing.assert_allclose(two[step][name], value, rtol=1e-3, err_msg=f"{step} {name}")


@pytest.mark.slow
def test_several_processes_build_nothing(place):
    flags = [
        "--gin.TrainJob.sources=(@TextBuildConfig(),)",
        f"--gin.TextBuildConfig.out='{place / 'absent'}'",
    ]
    for process in start_two(place, *flags):
        output = processes.finish(process, code=2)
        assert "which build nothing" in output
        assert "python -m data_pipelines.build text" in output
    assert not (place / "absent").exists()
