"""The second process of a job compiles nothing that the first one has; and the flags of a start."""

import processes
import pytest
import tiny_job

from slm_jax.training import metrics


@pytest.mark.slow
def test_programs_are_compiled_once_and_steps_traced_on_request(tmp_path):
    tiny_job.write_data(tmp_path / "data")
    settings = {"TrainJob.steps": 3, "TrainJob.eval_every": 3}
    (tmp_path / "job.gin").write_text(
        tiny_job.gin(tmp_path / "data", tmp_path / "runs", **settings)
    )
    programs = tmp_path / "cache" / "programs"

    def start(name, *flags):
        everything = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        everything |= {"JAX_COMPILATION_CACHE_DIR": ""}  # launch/train.py says where
        named = f"--gin.TrainJob.name={name}"
        process = processes.start(tmp_path / "job.gin", tmp_path, named, *flags, **everything)
        return processes.finish(process)

    assert "Nothing was written" in start("first", "--dry_run")
    assert not programs.exists() and not (tmp_path / "runs").exists()

    start("first", "--profile_steps=2:3")
    held = {path.name for path in programs.iterdir()}
    assert any("step" in name for name in held)
    assert list((tmp_path / "runs" / "first" / "profile").rglob("*.xplane.pb"))

    output = start("second")
    assert {path.name for path in programs.iterdir()} == held
    assert "goodput" in output
    last = [line for line in metrics.read(tmp_path / "runs" / "second" / metrics.FILE)][-1]
    assert last["split"] == "time" and last["compile_seconds"] > 0
    assert not (tmp_path / "runs" / "second" / "profile").exists()
