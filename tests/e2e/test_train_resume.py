"""A run that is stopped and killed on the way ends bitwise where an undisturbed one does.

Signals are real, and most are sent to this process from a known place in the loop; where the
process dies, launch/train.py runs in one of its own, with the same devices and compiler flags.
"""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import processes
import pytest
import tiny_job

from slm_jax import config
from slm_jax.data.loader import Loader
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import checkpoint, inventory, loop, metrics, weights
from slm_jax.training.checkpoint import Store
from slm_jax.training.distributed import PREEMPTED

STEPS = 60
SETTINGS = {
    "TrainJob.steps": STEPS,
    "TrainJob.eval_every": 10,
    "Checkpoints.every": 4,
    "BackboneConfig.dropout": 0.05,  # chance that comes back
    "Optimizer.ema": 0.9,  # and state to restore, too
}
SKIP = "Optimizer.skip = @SkipSpikes()\n"  # as is its window


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the dataset and job.gin."""
    root = tmp_path_factory.mktemp("train")
    tiny_job.write_data(root / "data")
    text = tiny_job.gin(root / "data", root / "runs", **SETTINGS) + SKIP
    (root / "job.gin").write_text(text)
    return root


@pytest.fixture(scope="module")
def whole(place):
    """The directory of the undisturbed run, which saves at its end."""
    job = config.load([place / "job.gin"], ["TrainJob.name=whole"])
    assert end(seldom(job)) == (STEPS, True)
    return job.run_dir


def seldom(job):
    """The job with the last checkpoint alone: each takes a while."""
    return dataclasses.replace(job, checkpoints=dataclasses.replace(job.checkpoints, every=STEPS))


def end(job):
    """Trains it; the step it ended at, and whether by itself."""
    outcome = loop.train(job)
    return outcome.step, outcome.finished


@pytest.fixture
def job(place):
    return config.load([place / "job.gin"], ["TrainJob.steps=3", "TrainJob.name=other"])


def logged(run_dir):
    """What the lines of metrics.jsonl say but for times, in order."""
    keys = ("step", "split", "losses", "batch", "grad_norm", "skipped")
    found = [line for line in metrics.read(run_dir / metrics.FILE) if line["split"] != "time"]
    return [{key: line.get(key) for key in keys} for line in found]


def live():
    """Bytes of all arrays on devices."""
    return sum(array.nbytes for array in jax.live_arrays())


def counted(monkeypatch, owner, name):
    """Has `owner.name`, which makes a state, append (live bytes before, after, leaves)."""
    made, calls = getattr(owner, name), []

    def counting(*args):
        before = live()
        state = made(*args)
        calls.append((before, live(), jax.tree.leaves(state)))
        return state

    monkeypatch.setattr(owner, name, counting)
    return calls


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def in_step(monkeypatch, number):
    """SIGTERM while the device computes step `number`."""
    push = metrics.Deferred.push

    def told(self, step, entry):
        if step == number:
            terminate()
        return push(self, step, entry)

    monkeypatch.setattr(metrics.Deferred, "push", told)


def in_evaluation(monkeypatch, seen):
    """SIGTERM in the first evaluation, the held-out batches coming ten times; `seen` gets them."""
    one_pass = Loader.one_pass

    def told(self, rows):
        for batch in 10 * list(one_pass(self, rows)):
            seen.append(batch)
            if len(seen) == 2:
                terminate()
            yield batch

    monkeypatch.setattr(Loader, "one_pass", told)


def in_save(monkeypatch):
    """SIGTERM while the next checkpoint is written behind the loop."""
    save = Store.save

    def told(self, state, step, *args, **named):
        save(self, state, step, *args, **named)
        if self._pending is not None and not self._pending.done():
            terminate()

    monkeypatch.setattr(Store, "save", told)


@pytest.mark.slow
def test_stopped_damaged_and_killed_run_equals_the_undisturbed_one(
    place, whole, monkeypatch, capsys
):
    job = config.load([place / "job.gin"], ["TrainJob.name=broken"])
    run_dir, gin, name = job.run_dir, place / "job.gin", "--gin.TrainJob.name=broken"

    others = live()
    born = counted(monkeypatch, weights, "initial")
    restored = counted(monkeypatch, Store, "restore")
    with monkeypatch.context() as patch:
        in_step(patch, 6)
        assert end(job) == (6, False)
    assert "stopped by SIGTERM after step 6, which is saved" in capsys.readouterr().out

    with monkeypatch.context() as patch:
        in_evaluation(patch, seen := [])
        assert end(job) == (10, False)
    assert len(seen) == 2
    assert checkpoint.find_step(run_dir).name == "10"

    # A restored state never meets another: there is none before it, none is made beside it, and
    # the first step takes its place.
    assert len(born) == len(restored) == 1
    for before, after, leaves in (*born, *restored):
        assert before - others < 0.01 * (after - before)
        assert all(leaf.is_deleted() for leaf in leaves)

    with monkeypatch.context() as patch:
        in_save(patch)
        assert end(job) == (13, False)
    assert checkpoint.steps_in(run_dir / "checkpoints") == [12, 13]
    assert inventory.damage(run_dir / "checkpoints" / "12") is None

    broken = max((run_dir / "checkpoints" / "13").glob("opt/**/d/*"), key=os.path.getsize)
    broken.write_bytes(broken.read_bytes()[:-100])
    slowly = "--xla_force_host_platform_device_count=8"  # compiled for seconds, without our flags
    process = processes.start(gin, place, name, XLA_FLAGS=slowly)
    said = [process.stdout.readline() for _ in range(2)]
    while not said[-1].startswith("run "):  # and then it compiles
        said.append(process.stdout.readline())
        assert process.poll() is None, "".join(said)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    assert "before a step was done: nothing is lost" in processes.finish(process, PREEMPTED)
    assert time.monotonic() - sent < 5
    assert f"{run_dir / 'checkpoints' / '12'} is used instead" in "".join(said)
    assert f"run {run_dir}: step 12 of {STEPS}, continued" in said[-1]

    process = processes.start(gin, place, name, XLA_FLAGS=os.environ["XLA_FLAGS"])
    processes.wait_for(process, run_dir, 22)  # the save after 20 waits for that after 16
    process.kill()
    process.communicate()
    assert 16 <= int(checkpoint.find_step(run_dir).name) < STEPS

    assert end(seldom(job)) == (STEPS, True)
    # Evaluations that a signal cut short are not made up for.
    undisturbed = [line for line in logged(whole) if (line["step"], line["split"]) != (10, "eval")]
    assert logged(run_dir) == undisturbed  # as floats: bitwise
    ours, theirs = (
        tree.flatten(checkpoint.load_params(folder).params) for folder in (run_dir, whole)
    )
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
    again = processes.finish(processes.start(gin, place, name))
    assert f"is complete: {STEPS} steps" in again


@pytest.mark.slow
def test_run_learns_and_leaves_what_it_promises(whole):
    losses = processes.losses(whole)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS]["speech/0"] < 0.75 * losses[1]["speech/0"]
    batches = {line["batch"] for line in logged(whole) if line["split"] == "train"}
    assert len(batches) == STEPS
    assert list((whole / "tensorboard").glob("events*"))
    saved = config.load([whole / "config.gin"])
    assert saved == checkpoint.load_params(whole).job
    assert saved.system.model.backbone.width == 32


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch(job):
    high = dataclasses.replace(job.optimizer, learning_rate=1e38, warmup_steps=0, skip=None)
    due = dataclasses.replace(job.checkpoints, every=2)  # just then
    job = dataclasses.replace(job, name="nan", optimizer=high, checkpoints=due)
    with pytest.raises(UserError, match="not finite at step 2") as caught:
        loop.train(job)
    assert "learning_rate" in caught.value.remedy
    assert checkpoint.steps_in(job.run_dir / "checkpoints") == []
    (saved,) = job.run_dir.glob("bad_batch_2*.npz")
    arrays = np.load(saved)
    assert arrays["tokens"].shape == (job.batch_size, 3, job.seq_len)
    about = json.loads(saved.with_suffix(".json").read_text())
    assert about["step"] == 2 and [row["row"] for row in about["rows"]] == list(range(8))
    (spec,) = job.data.datasets
    records = spec.open().split("train", ["text-tiny"])
    for row, segments in zip(about["rows"], arrays["segment_ids"], strict=True):
        assert row["dataset"] == spec.name
        assert len(row["records"]) == segments.max()
        for record in row["records"]:
            assert records[record["index"]]["text-tiny"].id == record["id"]


def test_other_settings_do_not_continue_a_run(place, whole, job):
    begun = dataclasses.replace(job, name="whole", steps=STEPS + 1)
    with pytest.raises(UserError, match="seq_len was 48, now 32"):
        loop.train(dataclasses.replace(begun, seq_len=32))
    tiny_job.write_data(place / "again", seed=1)
    text = tiny_job.gin(place / "again", place / "runs", **SETTINGS)
    other = config.loads(text, name="again.gin")
    with pytest.raises(UserError, match=r"data.parts\[0\]\[0\] was .*/data, now .*/again"):
        loop.train(dataclasses.replace(other, name="whole", steps=STEPS + 1))


def test_only_what_changes_no_number_may_change(place):
    def backbone(**fields):
        settings = [f"BackboneConfig.{name}={value}" for name, value in fields.items()]
        return config.load([place / "job.gin"], settings)

    begun = backbone()
    backbone(remat="full").check_continues(begun)
    with pytest.raises(UserError, match=r": system.model.backbone.dropout was 0.05, now 0.1\n"):
        backbone(remat="full", dropout=0.1).check_continues(begun)


def test_missing_data_and_meshes_that_do_not_fit(job, tmp_path):
    missing = dataclasses.replace(job.data, parts=((str(tmp_path / "none"), 1.0),))
    with pytest.raises(UserError, match="not a complete dataset"):
        loop.train(dataclasses.replace(job, data=missing))
    mesh = dataclasses.replace(job.parallel, data=3)
    with pytest.raises(UserError, match=f"does not divide {jax.device_count()} devices"):
        loop.train(dataclasses.replace(job, parallel=mesh))
    with pytest.raises(UserError, match="batch_size 6 does not divide"):
        loop.train(dataclasses.replace(job, batch_size=6))
