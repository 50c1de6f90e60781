"""The planner's memory beside what compilers took, which is committed."""

import runpy

import pytest

from slm_jax.paths import REPO

beside = runpy.run_path(str(REPO / "benchmarks/planner_memory.py"))


PAIRS = sorted(beside["RESULTS"].glob("pairs/*.json"))


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_the_planner_is_within_a_fifth_of_the_compiler(path):
    found = beside["compare"](path)
    assert found.state == pytest.approx(found.compiler_state, rel=0.05)
    assert found.ratio == pytest.approx(1, abs=0.2)


def test_the_page_has_every_result():
    before, after = beside["MARKS"]
    table = beside["PAGE"].read_text(encoding="utf-8").partition(before)[2].partition(after)[0]
    shown = {row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()}
    assert {path.stem for path in beside["RESULTS"].glob("*/*.json")} <= shown
