"""Batches made by threads: their order, their errors, and readers that hang."""

import itertools
import socket
import subprocess
import sys
import threading
import time

import pytest
import tiny_job

from slm_jax.data import shards
from slm_jax.data.ahead import Reading, ahead
from slm_jax.data.loader import Loader
from slm_jax.data.registry import MixtureSpec
from slm_jax.errors import UserError
from slm_jax.layouts import Layout, Par, Stream, Text

LAYOUT = Layout(
    "tiny", Par((Text("text-tiny", tiny_job.VOCAB, tiny_job.BOS, tiny_job.EOS),
                 Stream("taste", tiny_job.CODES)))
)  # fmt: skip


def test_order_is_kept_and_no_more_is_made_than_asked_for():
    begun = []

    def make(number):
        begun.append(number)
        time.sleep(0.01 * (number % 3))
        return number

    made = ahead(make, itertools.count(5), Reading(threads=3, ahead=4), str)
    assert list(itertools.islice(made, 20)) == list(range(5, 25))
    made.close()
    assert max(begun) <= 5 + 20 + 4


def test_an_error_says_what_was_read():
    def make(number):
        return 1 / (3 - number)

    with pytest.raises(ZeroDivisionError) as caught:
        list(ahead(make, range(9), Reading(), "record {}".format))
    assert caught.value.__notes__ == ["while making batch 3 from record 3"]


def test_settings_that_make_no_sense():
    for settings, message in [
        ({"threads": 0}, "threads must be at least 1"),
        ({"ahead": -1}, "ahead must not be negative"),
        ({"warn": 9.0, "stop": 5.0}, "at most stop, got 9.0 and 5.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Reading(**settings)


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """A loader whose third read of speech ids waits for the event, and that event."""
    tiny_job.write_data(tmp_path / "data")
    event, reads = threading.Event(), itertools.count()
    read = shards.ShardReader.read

    def hanging(self, index):
        if self.path.parent.name == "taste" and next(reads) == 2:
            event.wait(20)
        return read(self, index)

    mixture = MixtureSpec(((str(tmp_path / "data"), 1.0),))
    reading = Reading(threads=1, warn=0.2, stop=0.7)
    loader = Loader(mixture, LAYOUT, 2, 48, 0, cache=tmp_path, reading=reading)
    monkeypatch.setattr(shards.ShardReader, "read", hanging)
    yield loader, event
    event.set()


def test_a_reader_that_hangs_is_named(stuck, tmp_path, capfd):
    loader, _ = stuck
    with pytest.raises(UserError) as caught:
        next(loader.iterate(40))
    shard = tmp_path / "data" / "{text-tiny,taste}" / shards.shard_name("train", 0, 1)
    problem = str(caught.value)
    assert problem.startswith(f"{socket.gethostname()} has waited 1 s for batch 40, now at record ")
    assert str(shard) in problem and "Reading.stop" in problem
    warned = capfd.readouterr().err.splitlines()
    assert len(warned) == 3 and all(str(shard) in line for line in warned)


def test_a_slow_reader_is_told_and_goes_on(stuck, capfd):
    loader, event = stuck
    threading.Timer(0.4, event.set).start()
    made = next(loader.iterate(40))
    assert "has waited 0 s for batch 40, now at record" in capfd.readouterr().err
    assert (made["tokens"] == loader.batch(40)["tokens"]).all()


def test_a_process_ends_though_its_reader_hangs():
    code = (
        "import threading; from slm_jax.data.ahead import Reading, ahead\n"
        "never = threading.Event()\n"
        "next(ahead(lambda n: never.wait(), range(3), Reading(warn=0.1, stop=0.2), str))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "for batch 0, now at 0" in run.stderr
