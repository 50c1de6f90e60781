"""Jobs for TPUs that are not here, compiled by the launcher and held against what is committed.

A file of tests/golden/aot/pairs says the command that made it; the same with `--json=FILE` makes it
again.
"""

import json
import shlex

import pytest

from launch import plan
from slm_jax.errors import UserError
from slm_jax.paths import REPO

pytestmark = pytest.mark.aot

PAIRS = sorted((REPO / "tests/golden/aot/pairs").glob("*.json"))
TOO_LARGE = [
    "--aot", "--gin_file=pods/taste_smollm2.gin", "--accelerator=v5e-1", "--gin.LORA_RANK=0",
    "--gin.BackboneConfig.layers=1", "--gin.BATCH_SIZE=1", "--gin.SEQ_LEN=128",
    "--gin.TEXT_VOCAB=4000000", "--gin.BackboneConfig.vocab_size=4000000",
]  # fmt: skip


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_pair_fits_and_sends_what_it_did(path, tmp_path):
    golden = json.loads(path.read_text())
    plan.main([*shlex.split(golden["command"])[2:], f"--json={tmp_path / 'found.json'}"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["peak"] < found["limit"] == golden["limit"]
    assert found["peak"] == pytest.approx(golden["peak"], rel=0.1)
    assert found["collectives"].keys() == golden["collectives"].keys()
    for name in ("accelerator", "chips", "mesh", "accumulate", "kernels"):
        assert found[name] == golden[name], name
    assert found["operations"] == pytest.approx(golden["operations"])


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"GiB of HBM a chip, v5e-1 has 15\.75") as caught:
        plan.main(TOO_LARGE)
    assert "more memory" in caught.value.remedy
