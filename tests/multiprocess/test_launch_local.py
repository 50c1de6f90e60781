"""launch/local.py: processes that start, stop and die together, and how they find each other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import tiny_job

from slm_jax.paths import REPO
from slm_jax.training import checkpoint
from slm_jax.training.distributed import PREEMPTED

STEPS = 400


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    tiny_job.write_data(root / "data")
    settings = {"TrainJob.steps": STEPS, "TrainJob.eval_every": STEPS, "Checkpoints.every": STEPS}
    (root / "job.gin").write_text(tiny_job.gin(root / "data", root / "runs", **settings))
    return root


def start(place, name, *flags, count=2):
    return subprocess.Popen(
        [sys.executable, str(REPO / "launch" / "local.py"), f"--processes={count}", "--devices=2",
         f"--gin_file={place / 'job.gin'}", f"--gin.TrainJob.name={name}", *flags],
        cwd=place,
        env=os.environ | processes.as_users_have(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def children(process):
    """Process ids, in the order of their start."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(map(int, path.read_text().split()))


@pytest.mark.slow
def test_sigterm_is_passed_on_and_the_run_is_saved(place):
    launcher = start(place, "stopped")
    processes.wait_for(launcher, place / "runs" / "stopped", 20)
    launcher.send_signal(signal.SIGTERM)
    output = processes.finish(launcher, PREEMPTED)
    assert "SIGTERM: telling all processes to save and stop" in output
    assert "[0] " in output
    assert 20 <= int(checkpoint.find_step(place / "runs" / "stopped").name) < STEPS


@pytest.mark.slow
def test_one_that_dies_takes_the_others_down(place):
    launcher = start(place, "killed")
    assert any(line.startswith("[0] TrainJob.name") for line in launcher.stdout)  # both have joined
    first, second = children(launcher)
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    output = processes.finish(launcher, 128 + signal.SIGKILL)
    assert "process 1 of 2 was killed by SIGKILL; stopping the others" in output
    assert time.monotonic() - began < 60
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.slow
def test_a_mistake_ends_the_launcher_with_its_status(place):
    output = processes.finish(start(place, "wrong", "--gin.TrainJob.stepz=3", count=1), 2)
    assert "TrainJob has no field 'stepz'" in output


@pytest.mark.slow
def test_slurm_tells_the_number_of_processes_and_leaves_each_all_its_gpus():
    """Two processes, of two nodes as srun says, find each other."""
    code = (
        "import jax; from slm_jax.training import distributed; distributed.initialize();"
        "print(jax.process_index(), jax.process_count(), jax.device_count(),"
        " jax.config.read('jax_cuda_visible_devices'))"
    )
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),  # of which JAX makes its port
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_LOCALID": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPO,
            env=os.environ | slurm | {"SLURM_PROCID": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for index, process in enumerate(both):
        assert f"{index} 2 4 all\n" in process.communicate(timeout=300)[0]


@pytest.mark.slow
def test_half_of_the_variables_is_an_error():
    code = "from slm_jax.training import distributed; distributed.initialize()"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=os.environ | {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "set all of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID" in found.stderr
