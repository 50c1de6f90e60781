"""launch/train.py as two processes of four devices each, over gloo."""

import contextlib
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import processes
import pytest
import tiny_job

from slm_jax import config
from slm_jax.training import checkpoint, distributed, inventory, loop, metrics
from slm_jax.training.distributed import PREEMPTED

RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "kv_heads": "tensor",
         "vocab": "tensor"}  # fmt: skip
SETTINGS = {
    "TrainJob.steps": 10_000,  # every run here is ended from outside
    "TrainJob.eval_every": 10_000,
    "Checkpoints.every": 5,
    "Checkpoints.keep": 1000,
    "Parallel.fsdp": 2,
    "Parallel.tensor": 2,
    "Parallel.rules": RULES,
}
LAST = 25  # step that each run gets to


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    tiny_job.write_data(root / "data")
    (root / "job.gin").write_text(tiny_job.gin(root / "data", root / "runs", **SETTINGS))
    return root


@contextlib.contextmanager
def two(place, *flags):
    started = processes.start_two(place / "job.gin", place, *flags, devices=4)
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def lines(run_dir):
    """step -> losses and digest of the batch."""
    found = [line for line in metrics.read(run_dir / metrics.FILE) if line["split"] == "train"]
    return {line["step"]: (line["losses"], line["batch"]) for line in found}


def stop(started, number):
    """SIGTERM to one of them; the output of both."""
    started[number].send_signal(signal.SIGTERM)
    return [processes.finish(process, PREEMPTED) for process in started]


@pytest.fixture(scope="module")
def killed(place):
    """The directory of two processes of which one is killed, and a future of how the other ends.

    It waits long for heartbeats, and computes nothing meanwhile: what comes next need not wait.
    """
    run_dir = place / "runs" / "killed"
    with ThreadPoolExecutor(1) as pool, two(place, "--gin.TrainJob.name=killed") as (first, second):
        processes.wait_for(first, run_dir, 16)
        second.kill()
        yield run_dir, pool.submit(end, first)


def end(process):
    """Output of a process that ends by itself, its status, and the seconds until it did."""
    began = time.monotonic()
    output, _ = process.communicate(timeout=4 * distributed.SILENCE["heartbeat_timeout_seconds"])
    return output, process.returncode, time.monotonic() - began


@pytest.fixture(scope="module")
def whole(place, killed):
    """Output of two processes that are told to stop after LAST steps, and the directory."""
    run_dir = place / "runs" / "whole"
    with two(place, "--gin.TrainJob.name=whole") as started:
        processes.wait_for(started[0], run_dir, LAST)
        return stop(started, 1), run_dir  # the other host must hear of it


@pytest.mark.slow
def test_told_one_stop_both_at_one_step(whole):
    outputs, run_dir = whole
    stopped = int(checkpoint.find_step(run_dir).name)
    assert LAST <= stopped == max(lines(run_dir))
    assert f"stopped by SIGTERM after step {stopped}, which is saved" in outputs[0]
    assert "step 1/" in outputs[0] and "step 1/" not in outputs[1]  # one speaks for all


@pytest.mark.slow
def test_killed_one_ends_the_other_and_both_continue_bitwise(place, killed, whole):
    run_dir, ended = killed
    output, status, seconds = ended.result()
    assert seconds < 2 * distributed.SILENCE["heartbeat_timeout_seconds"]
    assert status != 0
    assert "tasks are unhealthy (stopped sending heartbeats):\n1\n" in output
    assert "another task died" in output

    # The newest checkpoint loses half of a file, too: both must take the one before.
    newest = checkpoint.find_step(run_dir)
    data = max(newest.glob("params/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    before = checkpoint.steps_in(newest.parent)[-2]
    with two(place, "--gin.TrainJob.name=killed") as started:
        processes.wait_for(started[0], run_dir, LAST)
        outputs = stop(started, 0)
    assert f"{newest} is damaged: {data.relative_to(newest)} has" in outputs[0]
    assert (run_dir / inventory.ASIDE / newest.name).is_dir()
    assert f"step {before} of {SETTINGS['TrainJob.steps']}, continued" in outputs[0]

    ours, theirs = lines(run_dir), lines(whole[1])
    common = min(max(ours), max(theirs))
    assert list(ours)[:common] == list(range(1, common + 1)) and common >= LAST
    for step in range(1, common + 1):  # as floats: bitwise
        assert ours[step] == theirs[step]


@pytest.mark.slow
def test_one_process_on_another_mesh_continues_what_two_began(place, whole):
    run_dir = place / "runs" / "one"
    shutil.copytree(whole[1] / "checkpoints" / "5", run_dir / "checkpoints" / "5")
    settings = ["TrainJob.name=one", "TrainJob.steps=10", "Parallel.fsdp=4", "Parallel.tensor=1"]
    job = config.load([place / "job.gin"], settings)  # warming up as the long run does
    loop.train(job)
    ours, theirs = lines(run_dir), lines(whole[1])
    assert list(ours) == list(range(6, 11))
    for step, (losses, batch) in ours.items():
        assert batch == theirs[step][1]
        for name, value in theirs[step][0].items():
            np.testing.assert_allclose(losses[name], value, rtol=1e-5, err_msg=f"{step} {name}")


@pytest.mark.slow
def test_several_processes_build_nothing(place):
    flags = [
        "--gin.TrainJob.sources=(@TextBuildConfig(),)",
        f"--gin.TextBuildConfig.out='{place / 'absent'}'",
    ]
    with two(place, *flags) as started:
        for process in started:
            output = processes.finish(process, code=2)
            assert "which build nothing" in output
            assert "python -m data_pipelines.build text" in output
    assert not (place / "absent").exists()
