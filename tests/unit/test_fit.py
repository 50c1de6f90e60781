"""The small trainer of the tokenizer recipes."""

import json
import os
import signal

import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.training import checkpoint
from slm_jax.training.distributed import PREEMPTED
from slm_jax.training.fit import FitConfig, fit


def run(folder, steps, seen, killed_at=None, judge=None):
    def step(state, batch, key):
        seen.append(int(batch))
        if batch == killed_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"sum": state["sum"] + batch}, {"loss": state["sum"]}

    state, config = {"sum": np.float32(0)}, FitConfig(steps, log_every=2, save_every=4)
    return fit(folder, "stage", config, state, step, np.float32, 0, judge=judge)["sum"]


def test_batches_come_in_their_order_however_many_threads_build_them(tmp_path):
    seen = []
    assert run(tmp_path, 40, seen) == sum(range(40)) and seen == list(range(40))


def test_sigterm_saves_the_step_and_the_next_run_goes_on_from_there(tmp_path, capsys):
    seen = []
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, 10, seen, killed_at=6)
    assert stopped.value.code == PREEMPTED
    assert "stopped by SIGTERM after step 7, which is saved" in capsys.readouterr().out
    assert run(tmp_path, 10, seen) == sum(range(10))
    assert seen == list(range(10))


def test_held_out_losses_are_logged_at_every_checkpoint(tmp_path):
    run(tmp_path, 8, [], judge=lambda state: {"mel": float(state["sum"])})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    judged = [line for line in map(json.loads, lines) if "held_out/mel" in line]
    assert [(line["step"], line["held_out/mel"]) for line in judged] == [(4, 6.0), (8, 28.0)]


def test_a_step_whose_loss_is_no_number_is_not_saved_though_none_is_logged(tmp_path):
    def step(state, batch, key):
        return {"last": batch}, {"loss": np.float32(np.nan if batch == 5 else 0)}

    config = FitConfig(20, log_every=10, save_every=4)
    with pytest.raises(UserError, match="not finite at step 8"):
        fit(tmp_path, "stage", config, {"last": np.float32(0)}, step, np.float32, 0)
    assert checkpoint.steps_in(tmp_path / "checkpoints" / "stage") == [4]
