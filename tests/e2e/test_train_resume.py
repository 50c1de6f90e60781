"""A run that is stopped and killed on the way ends bitwise where an undisturbed one does."""

import dataclasses
import signal

import jax
import numpy as np
import processes
import pytest
import tiny_job

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import checkpoint, loop
from slm_jax.training.distributed import PREEMPTED

STEPS = 400
SETTINGS = {"TrainJob.steps": STEPS, "TrainJob.eval_every": 200, "Checkpoints.every": 40}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the dataset and job.gin."""
    root = tmp_path_factory.mktemp("train")
    tiny_job.write_data(root / "data")
    (root / "job.gin").write_text(tiny_job.gin(root / "data", root / "runs", **SETTINGS))
    return root


@pytest.fixture(scope="module")
def whole(place):
    """The undisturbed run; its output."""
    return processes.finish(processes.start(place / "job.gin", place, "--gin.TrainJob.name=whole"))


@pytest.fixture
def job(place):
    return config.load([place / "job.gin"], ["TrainJob.steps=3", "TrainJob.name=other"])


@pytest.mark.slow
def test_stopped_and_killed_run_equals_the_undisturbed_one(place, whole):
    name, run_dir = "--gin.TrainJob.name=broken", place / "runs" / "broken"
    process = processes.start(place / "job.gin", place, name)
    processes.wait_for(process, run_dir, 60)
    process.send_signal(signal.SIGTERM)
    output = processes.finish(process, PREEMPTED)
    stopped = max(processes.losses(run_dir))
    assert f"stopped by SIGTERM after step {stopped}, which is saved" in output
    assert checkpoint.find_step(run_dir).name == str(stopped)

    process = processes.start(place / "job.gin", place, name)
    processes.wait_for(process, run_dir, stopped + 100)
    process.kill()
    process.communicate()
    assert int(checkpoint.find_step(run_dir).name) < STEPS

    processes.finish(processes.start(place / "job.gin", place, name))
    undisturbed = processes.losses(place / "runs" / "whole")
    assert list(undisturbed) == list(range(1, STEPS + 1))
    assert processes.losses(run_dir) == undisturbed  # as floats: bitwise
    ours, theirs = (
        tree.flatten(checkpoint.load_params(place / "runs" / run).params)
        for run in ("broken", "whole")
    )
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.mark.slow
def test_run_learns_and_leaves_what_it_promises(place, whole):
    run_dir = place / "runs" / "whole"
    losses = processes.losses(run_dir)
    assert losses[STEPS]["speech/0"] < 0.5 * losses[1]["speech/0"]
    assert "held out after step 400" in whole
    assert list((run_dir / "tensorboard").glob("events*"))
    saved = config.load([run_dir / "config.gin"])
    assert saved == checkpoint.load_params(run_dir).job
    assert saved.system.model.backbone.width == 32


@pytest.mark.slow
def test_the_same_command_again_says_that_the_run_is_complete(place, whole):
    again = processes.finish(processes.start(place / "job.gin", place, "--gin.TrainJob.name=whole"))
    assert f"is complete: {STEPS} steps" in again


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch(job):
    high = dataclasses.replace(job.optimizer, learning_rate=1e38, warmup_steps=0)
    job = dataclasses.replace(job, name="nan", optimizer=high)
    with pytest.raises(UserError, match="not finite at step 2") as caught:
        loop.train(job)
    assert "learning_rate" in caught.value.remedy
    (saved,) = job.run_dir.glob("bad_batch_2*.npz")
    assert np.load(saved)["tokens"].shape == (job.batch_size, 3, job.seq_len)


def test_other_settings_do_not_continue_a_run(place, whole, job):
    begun = dataclasses.replace(job, name="whole", steps=STEPS + 1)
    with pytest.raises(UserError, match="seq_len was 48, now 32"):
        loop.train(dataclasses.replace(begun, seq_len=32))
    tiny_job.write_data(place / "again", seed=1)
    text = tiny_job.gin(place / "again", place / "runs", **SETTINGS)
    other = config.loads(text, name="again.gin")
    with pytest.raises(UserError, match="data was"):
        loop.train(dataclasses.replace(other, name="whole", steps=STEPS + 1))


def test_missing_data_and_meshes_that_do_not_fit(job, tmp_path):
    missing = dataclasses.replace(job.data, parts=((str(tmp_path / "none"), 1.0),))
    with pytest.raises(UserError, match="not a complete dataset"):
        loop.train(dataclasses.replace(job, data=missing))
    mesh = dataclasses.replace(job.parallel, data=3)
    with pytest.raises(UserError, match=f"does not divide {jax.device_count()} devices"):
        loop.train(dataclasses.replace(job, parallel=mesh))
    with pytest.raises(UserError, match="batch_size 6 does not divide"):
        loop.train(dataclasses.replace(job, batch_size=6))
