"""The planner's memory beside what compilers took, which is committed."""

import runpy

import pytest

from slm_jax.paths import REPO

beside = runpy.run_path(str(REPO / "benchmarks/planner_memory.py"))


def compared(name):
    found = beside["compare"](beside["RESULTS"] / f"pairs/{name}.json")
    assert found.state == pytest.approx(found.compiler_state, rel=0.05)
    return found.ratio


@pytest.mark.parametrize("name", ["taste_smollm2", "mini_omni"])
def test_one_chip(name):
    """One is full of logits, the other of state and gradients."""
    assert compared(name) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["taste_llama32_1b", "taste_llama31_8b"])
def test_many_chips(name):
    """Not above the compiler, and not below seven tenths of it."""
    assert 0.7 < compared(name) < 1


def test_the_page_has_every_result():
    before, after = beside["MARKS"]
    table = beside["PAGE"].read_text(encoding="utf-8").partition(before)[2].partition(after)[0]
    shown = {row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()}
    assert {path.stem for path in beside["RESULTS"].glob("*/*.json")} <= shown
