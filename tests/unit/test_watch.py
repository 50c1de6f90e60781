"""The evaluation beside a training run measures what the loop measures, each checkpoint once."""

import shutil
import threading
import time

import jax
import pytest
import tiny_job

from data_pipelines import fetch
from slm_jax import config
from slm_jax.evaluation import watch
from slm_jax.training import checkpoint, loop, metrics, setup, weights
from slm_jax.training.held_out import HeldOut


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has measured and kept every checkpoint: 2, 4 and 6."""
    root = tmp_path_factory.mktemp("watch")
    tiny_job.write_data(root / "data")
    more = {"Checkpoints.keep": 3, "Optimizer.ema": 0.5}
    text = tiny_job.gin(root / "data", root / "runs", **more)
    settings = ["TrainJob.steps=6", "TrainJob.eval_every=2", "Checkpoints.every=2"]
    (root / "job.gin").write_text(text)
    job = config.load([root / "job.gin"], settings)
    loop.train(job)
    return job.run_dir


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def measured(run):
    """[(step, losses)] of the eval lines below a folder."""
    lines = metrics.read(run / metrics.FILE)
    return [(line["step"], line["losses"]) for line in lines if line["split"] == "eval"]


def test_checkpoints_that_appear_are_measured_once_until_the_last(run, copy, capsys):
    hidden = copy / "hidden"
    (copy / "checkpoints").rename(hidden)
    (copy / "config.gin").rename(hidden / "config.gin")
    thread = threading.Thread(target=watch.watch, args=(copy, fetch.locate, 0.05))
    thread.start()
    time.sleep(0.2)
    (copy / "checkpoints").mkdir()
    (hidden / "config.gin").rename(copy / "config.gin")
    for step in ("2", "4", "6"):
        (hidden / step).rename(copy / "checkpoints" / step)
        time.sleep(0.1)
    thread.join(timeout=300)
    assert not thread.is_alive()
    assert f"{copy} has no config.gin yet: waiting" in capsys.readouterr().out
    found, expected = measured(copy / "held_out"), measured(run)
    assert [step for step, _ in found] == [2, 4, 6]
    for (_, ours), (_, loops) in zip(found, expected, strict=True):
        assert ours == pytest.approx(loops, rel=1e-5)
    assert list((copy / "held_out" / "tensorboard").glob("events*"))
    assert measured(copy) == expected  # the run's own log is not touched

    watch.watch(copy, fetch.locate, 0.05)  # starts again: nothing is left to do
    assert measured(copy / "held_out") == found
    assert "held out after" not in capsys.readouterr().out


def test_what_is_measured_is_the_average_of_the_weights(run):
    job = config.load([run / "config.gin"])
    program = setup.make(job)
    with jax.set_mesh(program.mesh):
        measure = HeldOut(program, job.loader("validation"), weights.reference(program, None))
        averaged, last = (
            measure(checkpoint.load_params(run, program.state["params"], average).params)
            for average in (True, False)
        )
    (loops,) = [losses for step, losses in measured(run) if step == 6]
    assert averaged == pytest.approx(loops, rel=1e-5)
    assert abs(last["text"] - loops["text"]) > 1e-4


def test_checkpoints_that_vanish_or_are_damaged_are_left_out(run, copy, capsys, monkeypatch):
    for part in (copy / "checkpoints" / "4" / "params").rglob("*"):
        if part.is_file():
            part.write_bytes(part.read_bytes()[:3])
    steps_in = checkpoint.steps_in

    def removed(folder):
        """The listing; and then the trainer removes what is oldest."""
        found = steps_in(folder)
        shutil.rmtree(copy / "checkpoints" / "2", ignore_errors=True)
        return found

    monkeypatch.setattr(checkpoint, "steps_in", removed)
    watch.watch(copy, fetch.locate, 0.05)
    assert measured(copy / "held_out")[0][0] == 6 and len(measured(copy / "held_out")) == 1
    said = capsys.readouterr().out
    assert "step 2 is left out: " in said and "step 4 is left out: " in said
