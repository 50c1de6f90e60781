"""The loop of a tiny run that is interrupted and continued: what it keeps, logs, and never waits
for."""

import contextlib
import dataclasses
import gzip
import json
import struct
import threading
import traceback

import jax
import numpy as np
import pytest
import tiny_job
from jax._src.array import ArrayImpl
from tensorboardX.proto.event_pb2 import Event

from slm_jax import config
from slm_jax.data.ahead import Reading
from slm_jax.errors import UserError
from slm_jax.training import checkpoint, loop, metrics, run_folder
from slm_jax.training.digest import digest
from slm_jax.training.distributed import Preemption
from slm_jax.training.watch import Watch
from slm_jax.training.writers import Clip

STEPS, SAVED, KILLED = 8, 4, 6
MIXTURE = {"data": 0.75, "other": 0.25}
SETTINGS = {
    "TrainJob.steps": STEPS,
    "TrainJob.eval_every": 2,
    "Checkpoints.every": 4,
    "Checkpoints.keep": 1,
    "Checkpoints.best": "kl",  # what is trained leaves the frozen LLM: the best is not the last
}


class Killed(Exception):
    pass


def own_frames():
    """file:function of the callers that are ours, the innermost last."""
    frames = traceback.extract_stack()
    return [f"{f.filename.split('/')[-1]}:{f.name}" for f in frames if "/slm_jax/" in f.filename]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed while it listened after step 6, and its continuation to the end.

    Returns:
      "dir"; "before", the lines of metrics.jsonl that the first process left; "reads" and "waits",
      who of ours had arrays read on the host, or waited for the device, in the second; "guarded",
      how often an implicit transfer was refused between its steps; "compiled", which programs were,
      and whether the loop had asked by then if it was to stop.
    """
    root = tmp_path_factory.mktemp("loop")
    for seed, name in enumerate(MIXTURE):
        tiny_job.write_data(root / name, seed)
    mixed = {"MixtureSpec.parts": tuple((str(root / name), rate) for name, rate in MIXTURE.items())}
    job = config.loads(tiny_job.gin(root / "data", root / "runs", **SETTINGS | mixed))

    def listen(params):
        return [Clip("said/0", np.full(800, 0.5, np.float32), 16000, "a [...] b")]

    def dying(params):
        if metrics.read(job.run_dir / metrics.FILE)[-1]["step"] == KILLED:
            raise Killed
        return listen(params)

    with pytest.raises(Killed):
        loop.train(job, listen=dying)
    found = {"dir": job.run_dir, "before": metrics.read(job.run_dir / metrics.FILE)}
    found |= {"reads": [], "waits": [], "guarded": 0, "job": job, "compiled": []}

    thread, value, trained = threading.get_ident(), ArrayImpl._value, Watch.trained
    wait, stop, asked = jax.block_until_ready, Preemption.stop, []

    def read(array):
        if threading.get_ident() == thread:
            found["reads"].append(own_frames()[-1])
        return value.fget(array)

    def waiting(tree):
        found["waits"].append(own_frames()[-1])
        return wait(tree)

    def watched(self, entry):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            jax.numpy.zeros(3) + np.ones(3)
        found["guarded"] += 1
        return trained(self, entry)

    def stopping(self):
        asked.append(True)
        return stop(self)

    def compiled(event, _seconds, fun_name="", **_):
        if event.endswith("/backend_compile_duration"):
            found["compiled"].append((fun_name, bool(asked)))

    jax.monitoring.register_event_duration_secs_listener(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preemption, "stop", stopping)
        patch.setattr(ArrayImpl, "_value", property(read))
        patch.setattr(jax, "block_until_ready", waiting)
        patch.setattr(Watch, "trained", watched)
        found["outcome"] = loop.train(job, profile_steps=range(6, 8), listen=listen)
    jax.monitoring.unregister_event_duration_listener(compiled)
    found["lines"] = metrics.read(job.run_dir / metrics.FILE)
    return found


def lines(run, split, when="lines"):
    return [line for line in run[when] if line["split"] == split]


def test_the_host_reads_metrics_one_step_late_and_nothing_else(run):
    steady = [reader for reader in run["reads"] if not reader.startswith("checkpoint.py")]
    counts = {reader: steady.count(reader) for reader in steady}
    known = {
        "loop.py:train": 1,  # the step that it continues from, before the loop
        "watch.py:__init__": 1,  # the learning rates, likewise
    }
    for reader in ("metrics.py:push", "metrics.py:flush", "held_out.py:__call__"):
        assert counts.pop(reader) > 0
    assert {name: n for name, n in counts.items() if n > known.get(name, 0)} == {}
    # The first step is waited for to tell compiling from stepping, the last that is profiled too.
    assert run["waits"] == ["loop.py:train", "profile.py:after"]


def test_an_implicit_transfer_between_steps_is_refused(run):
    assert run["guarded"] >= STEPS - SAVED


def test_nothing_of_the_loop_compiles_once_a_step_is_done(run):
    """A SIGTERM would be heard after that."""
    named = ("jit(step)", "jit(evaluate)")
    assert {name for name, asked in run["compiled"] if not asked} >= {*named}
    assert not [name for name, asked in run["compiled"] if asked and name in named]


def test_metrics_come_out_one_step_late():
    deferred = metrics.Deferred()
    assert deferred.push(1, {"loss": jax.numpy.float32(1.5)}) is None
    assert deferred.push(2, {"loss": jax.numpy.float32(2.5)}) == (1, {"loss": 1.5})
    assert deferred.flush() == (2, {"loss": 2.5})
    assert deferred.flush() is None


def test_a_full_disk_is_told_of_the_log_as_well(tmp_path):
    log = metrics.Log(tmp_path, 0, [])
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"no room to save what was measured in .*intact"):
        log.write(1, "train", {})
    with contextlib.suppress(OSError):  # it tries once more
        log.close()


def test_a_long_set_is_summed_exactly():
    many, few = np.float32(1e9), np.float32(1e4)
    found = metrics.add(metrics.add({}, {"text": (many, many)}), {"text": (few, few)})
    assert found["text"] == (1e9 + 1e4, 1e9 + 1e4)


def test_every_step_is_logged_once_over_the_restart(run):
    assert [line["step"] for line in lines(run, "train")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(run, "eval")] == [2, 4, 6, 8]
    assert run["outcome"].trained == STEPS - SAVED


def test_each_step_is_given_the_loaders_batch_over_the_restart(run):
    """With threads ahead of it; what test_loader.py says of batches is said of the loop's."""
    job = run["job"]
    loader = dataclasses.replace(job, reading=Reading(threads=1, ahead=0)).loader("train")
    batches = [jax.jit(digest)(loader.batch(step)) for step in range(STEPS)]
    assert [line["batch"] for line in lines(run, "train")] == [f"{int(x):08x}" for x in batches]


def test_rates_are_met_in_every_window_of_the_rows_trained_on(run):
    loader, rows = run["job"].loader("train"), range(run["job"].batch_size)
    names = [row["dataset"] for step in range(STEPS) for row in loader.origin(step, rows)]
    other = [name.endswith("/other") for name in names]
    assert {sum(other[start : start + 4]) for start in range(0, len(other), 4)} == {1}


def test_time_is_accounted_for_over_the_restart(run):
    last, (first, *_) = lines(run, "time")[-1], lines(run, "time", "before")
    before = lines(run, "time", "before")[-1]
    saved = [line for line in lines(run, "time", "before") if line["step"] <= SAVED][-1]
    assert first["step"] == 0
    assert last["lost_seconds"] == before["step_seconds"] - saved["step_seconds"] > 0
    spent = {name: value for name, value in last.items() if name.endswith("_seconds")}
    named = ("start", "compile", "data", "step", "save", "eval", "profile", "lost", "other")
    assert set(spent) == {f"{name}_seconds" for name in named}
    assert all(last[name] >= value for name, value in saved.items() if name.endswith("_seconds"))
    assert last["goodput"] == pytest.approx(last["step_seconds"] / sum(spent.values()), rel=1e-3)


def test_no_step_is_said_to_take_what_measuring_and_saving_do(run):
    carried = [line for line in lines(run, "time") if line["step"] == SAVED][-1]
    last = lines(run, "time")[-1]
    spent = {name: last[name] - carried.get(name, 0) for name in last if name.endswith("_seconds")}
    others = spent["eval_seconds"] + spent["save_seconds"]
    assert others > 0.1  # else this shows nothing
    steps = sum(line["seconds"] for line in lines(run, "train")[SAVED:])
    assert steps < sum(spent.values()) - others + 0.05


def test_the_wait_for_data_is_measured_each_step(run):
    waits = [line["data_wait"] for line in lines(run, "train")[SAVED:]]
    carried = [line for line in lines(run, "time") if line["step"] == SAVED][-1]
    whole = lines(run, "time")[-1]["data_seconds"] - carried.get("data_seconds", 0.0)
    assert all(wait > 0 for wait in waits)
    assert sum(waits) == pytest.approx(whole, rel=1e-6)


def test_the_best_checkpoint_stays_beside_the_newest(run):
    kl = {line["step"]: line["losses"]["kl"] for line in lines(run, "eval")}
    assert kl[4] < kl[8]  # else this shows nothing
    assert checkpoint.steps_in(run["dir"] / "checkpoints") == [4, 8]
    assert checkpoint.load_params(run["dir"] / "best").step == 4
    assert checkpoint.load_params(run["dir"]).step == 8


def test_a_best_that_nothing_measures_is_refused(run):
    text = tiny_job.gin("data", "runs", **SETTINGS | {"TrainJob.eval_every": 3})
    with pytest.raises(UserError, match="eval_every 3 must divide"):
        config.loads(text)
    text = tiny_job.gin("data", "runs", **SETTINGS | {"Checkpoints.best": "txet"})
    with pytest.raises(UserError, match="'txet' is no held-out loss") as caught:
        loop.train(config.loads(text))
    assert "kl, speech, speech/0, speech/1, text, total" in caught.value.remedy


def test_two_jobs_do_not_share_a_directory(run):
    with (
        run_folder.held(run["dir"]),
        pytest.raises(UserError, match=f"another job trains in {run['dir']}"),
    ):
        loop.train(dataclasses.replace(run["job"], steps=STEPS + 1))
    inside = dataclasses.replace(run["job"], runs=str(run["dir"] / metrics.FILE))
    with pytest.raises(UserError, match=r"cannot be written to .*Not a directory"):
        loop.train(inside)


def test_the_profile_holds_the_steps_asked_for(run):
    (trace,) = (run["dir"] / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps == {"6", "7"}


def events(folder):
    """What TensorBoard reads: records of length, checksum, event, checksum."""
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16


def test_tensorboard_has_curves_and_what_was_said(run):
    said, curves = {}, {}
    for event in events(run["dir"] / "tensorboard"):
        for value in event.summary.value:
            if value.HasField("audio"):
                said[event.step] = value.audio
            elif value.HasField("simple_value"):
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    assert sorted(said) == [2, 4, 6, 8]
    assert said[8].sample_rate == 16000 and said[8].length_frames == 800
    logged = {line["step"]: line["losses"]["text"] for line in lines(run, "train")}
    assert curves["train/text"] == pytest.approx(logged)
    assert {"time_goodput", "train_data_wait", "eval/text"} <= set(curves)
