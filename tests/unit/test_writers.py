"""Weights & Biases, as far as it is installed; TensorBoard is read back in test_loop.py."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import soundfile

from slm_jax.errors import UserError
from slm_jax.training import writers

INSTALLED = importlib.util.find_spec("wandb") is not None


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 12345


@pytest.mark.skipif(not INSTALLED, reason="needs the extra [wandb]")
def test_a_run_and_its_continuation_are_one_run_there(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    clip = writers.Clip("said/0", np.full(800, 0.25, np.float32), 16000, "words")
    for step, loss in ((1, 1.625), (5, 2.375)):
        writer = writers.Wandb(tmp_path, "project", "name", Settings())
        writer.numbers(step, {"train/text": loss})
        writer.clip(step, clip)
        writer.close()
    first, second = sorted(tmp_path.rglob("*.wandb"))
    assert first.name == second.name == f"run-{(tmp_path / 'wandb_id').read_text()}.wandb"
    for path, loss in ((first, b"1.625"), (second, b"2.375")):
        held = path.read_bytes()
        assert b"train/text" in held and loss in held and b"12345" in held
        (sound,) = path.parent.rglob("*.wav")
        audio, rate = soundfile.read(sound)
        assert rate == 16000 and audio == pytest.approx(0.25, abs=1e-3)


@pytest.mark.skipif(INSTALLED, reason="wandb is installed")
def test_a_job_that_wants_what_is_not_installed_says_so_first():
    writers.check_wandb("")
    with pytest.raises(UserError, match="wandb is not installed") as caught:
        writers.check_wandb("project")
    assert "slm_jax[wandb]" in caught.value.remedy
