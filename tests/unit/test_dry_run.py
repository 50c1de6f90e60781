"""--dry_run of launch/train.py: it says what would be trained, computes nothing, leaves nothing."""

from pathlib import Path

import jax
import pytest
import tiny_job
import tiny_shards

from launch import train
from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.training.profile import Profile, parse_steps

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """When called, says what was written below tmp_path and what was compiled since."""
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    compiled = []

    def note(event, _seconds, **about):
        if event == COMPILED:
            compiled.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    (tmp_path / "cache").mkdir()
    there = {*tmp_path.rglob("*")}

    def changed():
        jax.monitoring.unregister_event_duration_listener(note)
        return {*tmp_path.rglob("*")} - there, compiled

    return changed


def run(path, text):
    path.write_text(text)
    train.show(config.load([path]))


def test_a_job_as_tables_and_a_grid(tmp_path, capsys, request):
    tiny_job.write_data(tmp_path / "data")
    (tmp_path / "job.gin").touch()
    changed = request.getfixturevalue("quiet")
    text = tiny_job.gin(tmp_path / "data", tmp_path / "runs")
    run(tmp_path / "job.gin", text + 'Parallel.fsdp = 4\nParallel.rules = {"mlp": "fsdp"}\n')
    written, compiled = changed()
    assert not written
    assert {*compiled} <= {"jit(convert_element_type)"}  # of constants that tracing meets
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert "BackboneConfig.width = 32" in said
    kernel = lines["backbone/layers/mlp/up/kernel"]
    assert kernel == ["2x32x64", "float32", ".", ".", "fsdp", "no", "4,096"]
    lora = lines["backbone/layers/mlp/up/lora_a"]
    assert lora == ["2x32x2", "float32", "whole", "yes", "128"]
    assert "mesh: data 2 x fsdp 4 x tensor 1 x context 1 on cpu" in said
    assert lines["tokens"] == ["8x3x48", "int32", "data+fsdp", ".", "."]
    grid = said[said.index("first row") :]
    assert "BOS" in grid and "taste.1  INIT" in grid and "*" in grid
    assert f"run {tmp_path / 'runs' / 'tiny'}: would begin" in said


def test_memory_is_what_the_arrays_take(tmp_path, capsys):
    tiny_job.write_data(tmp_path / "data")
    run(tmp_path / "job.gin", tiny_job.gin(tmp_path / "data", tmp_path / "runs"))
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    (total, trained) = (
        int(part.split()[0].replace(",", ""))
        for line in said.splitlines()
        if line.endswith(" trained")
        for part in line.split(", ")
    )
    shown = {name: float(lines[name][0]) for name in ("parameters", "optimizer", "gradients")}
    assert shown["parameters"] == pytest.approx(4 * total / 1e6, abs=0.06)
    assert shown["optimizer"] == pytest.approx(8 * trained / 1e6, abs=0.06)
    assert shown["gradients"] == pytest.approx(4 * trained / 1e6, abs=0.06)


@pytest.mark.parametrize("system", ["moshi", "text_then_speech"])
def test_a_system_of_the_literature(system, tmp_path, capsys):
    tiny_shards.write_data(tmp_path / "data")
    text = f"""
include "systems/tiny/{system}.gin"
TrainJob.name = "tiny"
TrainJob.runs = "{tmp_path / "runs"}"
TrainJob.seq_len = 256
TrainJob.prompts = 0
MixtureSpec.parts = (("{tmp_path / "none"}", 1.0),)
LossWeights.kl = 0.0
"""
    run(tmp_path / "job.gin", text)
    said = capsys.readouterr().out
    assert "parameters, " in said and "memory of one device" in said
    # Without data it says the rest, and what is missing.
    assert "first batch: " in said and "is not a complete dataset" in said
    assert not (tmp_path / "runs").exists()


def test_steps_to_profile():
    assert parse_steps("10:13") == range(10, 13)
    for bad in ("10", "13:10", "0:2", "a:b", "3:3"):
        with pytest.raises(UserError, match="names no steps"):
            parse_steps(bad)
    profile = Profile(Path("run"), range(10, 13))
    runs = [(0, 9), (0, 10), (11, 100), (12, 100)]  # updates done before, and in all
    assert [profile.within(*run) for run in runs] == [False, True, True, False]
