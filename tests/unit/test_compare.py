"""Twins, latency, budgets, tables and resuming of the comparison of systems."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_shards
from hypothesis import given
from hypothesis import strategies as st

from launch import compare
from slm_jax import config
from slm_jax.data import schema
from slm_jax.errors import UserError
from slm_jax.evaluation.compare import budget, facts, report, scores, twins
from slm_jax.evaluation.compare.job import CompareJob
from slm_jax.layouts import Delay, Layout, Par, Seq, Stream, Token

RECORDS = [tiny_shards.record(number) for number in range(40)]
SPECS = {spec.name: spec for spec in tiny_shards.SPECS}
SPEECH = ("taste", "units", "codec", tiny_shards.MULAW, tiny_shards.LATENTS)
TEXT = Stream("text-smollm2", (tiny_shards.TEXT,), eos=24, pad=25)
CODEC = Stream("codec", (tiny_shards.CODEC,) * 6, rate=50.0)
BESIDE = Layout("beside", Par((TEXT, Delay(CODEC, (0, 1, 2, 3, 4, 5)))))
READ = dataclasses.replace(TEXT, eos=-1, predicted=False)
READ_FIRST = Layout("first", Seq((READ, Token(30, "SAY"), Stream("units", (12,), offset=(40,)))))


@given(st.integers(0, 39), st.integers(0, 39), st.data())
def test_a_twin_differs_from_a_word_on_in_its_speech_alone(one, other, data):
    record, donor = RECORDS[one], RECORDS[other]
    words = record[schema.WORDS].words
    word = data.draw(st.integers(1, len(words) - 1))
    false = twins.twin(record, donor, SPECS, word)
    for family, item in record.items():
        if family not in SPEECH:
            assert false[family] is item
            continue
        clock = SPECS[family].clock
        cut = word if clock == "word" else round(words[word].start * clock)
        assert 0 < cut < len(item.values)
        np.testing.assert_array_equal(false[family].values[:cut], item.values[:cut])
        rest = donor[family].values[cut : len(item.values)]
        np.testing.assert_array_equal(false[family].values[cut:][: len(rest)], rest)


def test_twins_are_as_long_as_the_true_ones_and_come_from_others():
    found = twins.twins(RECORDS, SPECS, each=3, seed=0)
    assert len(found) > len(RECORDS)
    for place, false in found:
        true = RECORDS[place]
        assert all(len(false[f].values) == len(true[f].values) for f in SPEECH)
        assert false["text-smollm2"] is true["text-smollm2"]
    places = [place for place, _ in found]
    assert max(map(places.count, places)) <= 3
    again = twins.twins(RECORDS, SPECS, each=3, seed=0)
    np.testing.assert_array_equal(found[0][1]["codec"].values, again[0][1]["codec"].values)


def test_latency_counts_the_columns_before_all_levels_of_the_first_item():
    record = RECORDS[0]
    assert facts.latency(BESIDE, record) == 6  # level 5 of frame 0 is in the sixth column said
    ids = len(record["text-smollm2"].values)
    assert facts.latency(READ_FIRST, record) == ids + 2  # INIT, the text, SAY


def test_a_group_names_streams_and_levels():
    some = RECORDS[:4]
    assert facts.group(BESIDE, some) == "codec 0-5"
    assert facts.group(READ_FIRST, some) == "units 0"
    assert facts.texts(BESIDE) == ["predicted"] and facts.texts(READ_FIRST) == ["read"]
    frames = sum(len(r["codec"].values) for r in some)
    seconds = sum(r[schema.WORDS].duration for r in some)
    assert facts.items_per_second(BESIDE, some) == pytest.approx(6 * frames / seconds)
    assert facts.counts(BESIDE, some)["speech_targets_per_second"] == pytest.approx(
        6 * frames / seconds
    )


@given(st.floats(1e6, 2e9), st.integers(25, 400))
def test_a_plan_spends_the_budget(row, steps):
    operations = 1e11
    plan = budget.plan(row, operations, steps)
    assert abs(plan.rows * plan.steps * row / operations - 1) <= budget.TOLERANCE
    assert plan.share == pytest.approx(plan.rows * plan.steps * row / operations)
    shared = budget.plan(row / 8, operations, steps, devices=8)
    assert shared.rows % 8 == 0


def test_a_budget_of_a_few_steps_is_refused():
    with pytest.raises(UserError, match="of the budget"):
        budget.plan(3e9, 1e10, 10)


def test_pairs_are_won_by_the_likelier_mean():
    true = scores.Nats(np.array([4.0, 9.0, 1.0]), np.array([2, 3, 1]))
    false = scores.Nats(np.array([9.0, 6.0, 4.0, 8.0]), np.array([3, 3, 2, 3]))
    figure = scores.pair_accuracy(true, false, [0, 0, 1, 1], 3)
    assert figure.value == 0.25 and figure.n == 2  # 3 > 2, 2 = 2, 2 < 3, 2.7 < 3


LINE = {
    "system": "moshi", "errors": {}, "rows": 2, "steps": 10, "share": 1.01, "at_once": False,
    "parameters": 2_000_000, "parameters_without_text": 500_000, "group": "codec 0-5",
    "text": "predicted", "columns_per_second": 50.0, "speech_targets_per_second": 300.0,
    "columns": 80.0, "speech_nats": 1900.0, "text_nats": 20.0, "first_columns": 2.0,
    "pairs": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 20}, "column_ms": 5.0,
}  # fmt: skip


def test_tables_group_systems_and_notes_say_what_is_missing(tmp_path):
    lines = [
        LINE | {"system": "worse", "speech_nats": 2000.0},
        LINE | {"given": "level 0"},
        {"system": "waveform", "errors": {}, "missing": ["mulaw-1000"]},
        {"system": "broken", "errors": {"trained": "no <room>"}},
    ]
    rate = {"wer": 0.02, "low": 0.0, "high": 0.08}
    head = {"operations": 5e11, "utterances": 3, "seconds": 9.0, "ceilings": {"codec": rate}}
    text = report.write(tmp_path, lines, {"moshi": "a grid"}, head)
    (rows,) = report.tables(lines).values()
    assert [row[0] for row in rows] == ["moshi", "worse"]
    assert dict(zip(report.HEAD, rows[0], strict=True))["first audio, ms"] == "10"
    assert "80 (70 to 90)" in text and "waveform: not trained" in text
    assert "moshi: level 0" in text
    page = (tmp_path / report.HTML).read_text()
    assert "no &lt;room&gt;" in page and "a grid" in page and "{{" not in page


def test_every_tiny_system_is_compared():
    names = compare.all_systems("systems/tiny")
    assert "moshi" in names and "sizes" not in names and len(names) > 35


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Tiny shards, and the systems of the gin files fitted to them."""
    root = tmp_path / "data"
    tiny_shards.write_data(root)
    load = config.load

    def fitted(*args, **kwargs):
        return tiny_shards.fitted(load(*args, **kwargs))

    monkeypatch.setattr(compare.config, "load", fitted)
    return root


@pytest.mark.sweep
def test_systems_are_trained_once_and_kept(shards, tmp_path, monkeypatch):
    job = CompareJob(
        dataset=str(shards), systems=("epsilon_fixed", "cascade_tts"), operations=1e10, steps=30,
        prompts=2, twins=1, runs=str(tmp_path / "runs"),
    )  # fmt: skip
    monkeypatch.setattr(compare.measure, "spoken", lambda *_: {})  # needs downloaded weights
    monkeypatch.setattr(compare.measure, "ceilings", lambda *_: {})
    monkeypatch.setattr(compare, "load_voices", lambda *_: None)
    lines = compare.Comparison(job).run()
    assert [line["system"] for line in lines] == list(job.systems)
    assert not any(line["errors"] for line in lines)
    assert all(abs(line["share"] - 1) <= budget.TOLERANCE for line in lines)
    assert all(np.isfinite(line["speech_nats"]) and line["pairs"] for line in lines)

    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(compare.loop, "train", train)
    assert compare.Comparison(job).run() == lines
    kept = [json.loads(line) for line in (job.run_dir / compare.LINES).read_text().splitlines()]
    assert [line["system"] for line in kept] == list(job.systems)
    again = compare.Comparison(dataclasses.replace(job, seed=1)).run()
    assert all("trained again" in line["errors"]["trained"] for line in again)
