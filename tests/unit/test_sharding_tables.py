"""Every parameter, optimizer slot and batch leaf of the shipped models lies where it did."""

import json

import pytest
import sharding_tables


@pytest.mark.parametrize("name", sharding_tables.NAMES)
def test_table_is_the_golden_one(name):
    golden = json.loads((sharding_tables.GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert sharding_tables.table(name) == golden, "meant? then python tests/sharding_tables.py"


def test_every_golden_table_is_compared():
    assert {path.stem for path in sharding_tables.GOLDEN.glob("*.json")} == {*sharding_tables.NAMES}


def test_slots_are_told_apart_where_one_lies_elsewhere():
    lines = {
        "params/a/kernel": "f; fsdp: fsdp", "params/b/kernel": "f; fsdp: fsdp",
        "opt/0/mu/a/kernel": "f; fsdp: fsdp", "opt/0/mu/b/kernel": "f; fsdp: fsdp",
        "opt/0/nu/a/kernel": "f; fsdp: fsdp", "opt/0/nu/b/kernel": "f",
    }  # fmt: skip
    kept = sharding_tables.beside_weights(lines)
    assert kept["opt/0/mu/*"] == "as 2 of params"
    assert kept["opt/0/nu/b/kernel"] == "f"
    assert kept["opt/0/nu/*"] == "as 1 of params"
