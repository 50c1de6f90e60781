"""Jobs for chips that are not here, compiled by the launcher and held against what is committed.

A file of tests/golden/aot/pairs says the command that made it; the same with `--json=FILE` makes it
again.
"""

import json
import shlex
from pathlib import Path

import pytest

from launch import plan
from slm_jax.paths import REPO
from slm_jax.planning import accelerators


def of(platform: str) -> list[Path]:
    """The files for "tpu" or "gpu"."""
    files = sorted((REPO / "tests/golden/aot/pairs").glob("*.json"))
    return [path for path in files if _golden(path)[1].platform == platform]


def check(path: Path, scratch: Path) -> None:
    """It fits into the memory that it did, to a tenth, and sends what it did."""
    golden, _ = _golden(path)
    plan.main([*shlex.split(golden["command"])[2:], f"--json={scratch / 'found.json'}"])
    found = json.loads((scratch / "found.json").read_text())
    assert found["peak"] < found["limit"] == golden["limit"]
    assert found["peak"] == pytest.approx(golden["peak"], rel=0.1)
    assert found["collectives"].keys() == golden["collectives"].keys()
    for name in ("accelerator", "chips", "mesh", "accumulate", "kernels"):
        assert found[name] == golden[name], name
    assert found["operations"] == pytest.approx(golden["operations"])


def _golden(path: Path) -> tuple[dict, accelerators.Accelerator]:
    golden = json.loads(path.read_text())
    return golden, accelerators.parse(golden["accelerator"])
