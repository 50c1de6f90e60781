"""The account of a run's time, within a process and over restarts."""

import time

import pytest

from slm_jax.training.goodput import SPLIT, Goodput


def line(at, **seconds):
    return {"split": SPLIT, "step": at} | {f"{name}_seconds": n for name, n in seconds.items()}


def test_seconds_add_up_to_the_wall_time():
    began = time.monotonic()
    spent = Goodput()
    time.sleep(0.02)
    spent.started()
    with spent.spend("step") as span:
        time.sleep(0.05)
    time.sleep(0.05)
    numbers = spent.numbers()
    assert numbers["step_seconds"] == span.seconds >= 0.05
    assert numbers["other_seconds"] >= 0.05
    assert numbers["start_seconds"] >= 0.02
    total = sum(value for name, value in numbers.items() if name != "goodput")
    assert 0.1 <= total <= time.monotonic() - began
    assert numbers["goodput"] == pytest.approx(span.seconds / total, rel=0.05)


def test_steps_that_a_killed_process_had_not_saved_are_lost():
    lines = [
        line(0, start=5.0),
        line(100, start=5.0, step=50.0, other=1.0),
        {"split": "train", "step": 150},
        line(150, start=5.0, step=80.0, eval=4.0, other=2.0),
    ]
    spent = Goodput()
    spent.resume(lines, start=100)
    numbers = spent.numbers()
    assert numbers["lost_seconds"] == 30.0
    assert numbers["step_seconds"] == 50.0
    assert numbers["eval_seconds"] == 4.0
    assert numbers["other_seconds"] == pytest.approx(2.0, abs=0.1)
    assert numbers["goodput"] == pytest.approx(50 / 91, rel=0.01)
    assert spent.describe().startswith("goodput 55%: of 91 s")


def test_what_was_lost_twice_adds_up():
    spent = Goodput()
    spent.resume([line(100, step=50.0), line(150, step=80.0)], start=100)
    carried = {"split": SPLIT, "step": 100} | spent.numbers()
    again = Goodput()
    again.resume([line(100, step=50.0), carried, line(120, step=60.0, lost=30.0)], start=100)
    assert again.numbers()["lost_seconds"] == 40.0
    assert again.numbers()["step_seconds"] == 50.0


def test_a_run_that_ended_where_it_was_saved_lost_nothing():
    spent = Goodput()
    spent.resume([line(50, step=20.0), line(100, step=40.0)], start=100)
    assert spent.numbers()["lost_seconds"] == 0.0
    assert spent.numbers()["step_seconds"] == 40.0
