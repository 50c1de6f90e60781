import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import pool
from slm_jax.errors import UserError


def visit(payload, guard):
    """Work on a list of items; some of them end the worker in ways that real files do."""
    done = []
    for item in payload:
        if not guard.enter(item):
            done.append(f"banned {item}")
            continue
        if item.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "user error":
            raise UserError("the thing is wrong", "mend it")
        if item == "bug":
            raise ZeroDivisionError("deep inside")
        done.append(item)
    return done


def die_at_once(payload, guard):
    os._exit(9)


def loaded(payload, guard):
    return payload in sys.modules


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import wsgiref.simple_server  # the script has it, workers must not
import test_pool
from pathlib import Path
from data_pipelines import pool
units = {"one": "wsgiref.simple_server", "two": "test_pool"}
print(sorted(pool.run(test_pool.loaded, units, Path(sys.argv[2]), 1)))
"""


def test_workers_do_not_run_the_script_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, script, Path(__file__).parent, tmp_path], capture_output=True, text=True
    )
    assert run.stdout == "[('one', False), ('two', True)]\n", run.stderr


def test_every_unit_gives_its_result(tmp_path):
    units = {f"unit-{i}": [f"{i}a", f"{i}b"] for i in range(5)}
    assert dict(pool.run(visit, units, tmp_path, workers=2)) == units
    assert not list(tmp_path.glob("*.inflight"))


def test_a_file_that_kills_twice_is_left_out_and_the_rest_goes_on(tmp_path):
    units = {"one": ["a", "kill", "b"], "two": ["c", "d"]}
    assert dict(pool.run(visit, units, tmp_path, workers=1)) == {
        "one": ["a", "banned kill", "b"],
        "two": ["c", "d"],
    }
    deaths = (tmp_path / "deaths.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in deaths] == ["kill", "kill"]
    # The next run knows, and loses no worker on it.
    assert dict(pool.run(visit, {"three": ["kill"]}, tmp_path, workers=1)) == {
        "three": ["banned kill"]
    }
    assert len((tmp_path / "deaths.jsonl").read_text().splitlines()) == 2


def test_deaths_of_the_whole_process_tree_count(tmp_path):
    for _ in range(2):
        (tmp_path / "one.inflight").write_text("poison")
        ledger = pool.Ledger(tmp_path)
    assert ledger.banned == {"poison"}
    assert not list(tmp_path.glob("*.inflight"))


def test_a_worker_that_dies_outside_any_file_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"died 3 times in one .*exit code 9"):
        list(pool.run(die_at_once, {"one": []}, tmp_path, workers=1))


def test_errors_of_the_work_come_out_and_ban_nothing(tmp_path):
    with pytest.raises(UserError, match="the thing is wrong"):
        list(pool.run(visit, {"one": ["a", "user error"]}, tmp_path, workers=1))
    with pytest.raises(RuntimeError, match="deep inside"):
        list(pool.run(visit, {"one": ["a", "bug"]}, tmp_path, workers=1))
    assert pool.Ledger(tmp_path).banned == frozenset()
    assert not (tmp_path / "deaths.jsonl").exists()


def test_a_run_that_is_given_up_books_no_death(tmp_path):
    results = pool.run(visit, {"one": ["a"], "two": ["b"], "three": ["c"]}, tmp_path, workers=2)
    next(results)
    results.close()
    assert not list(tmp_path.glob("*.inflight"))
    assert not (tmp_path / "deaths.jsonl").exists()
