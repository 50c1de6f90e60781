import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.data import packing


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 32), st.integers(0, 2**31))
def test_every_record_that_fits_is_in_one_row(lengths, seq_len, seed):
    plan = packing.pack(np.array(lengths), seq_len, seed)
    fitting = [i for i, length in enumerate(lengths) if 0 < length <= seq_len]
    assert sorted(plan.order.tolist()) == fitting
    assert plan.skipped == len(lengths) - len(fitting)
    filled = [sum(lengths[i] for i in plan.row(r)) for r in range(len(plan))]
    assert all(0 < f <= seq_len for f in filled)
    assert len([f for f in filled if 2 * f <= seq_len]) <= 1  # two such rows would be one
    if filled:
        assert plan.fill(seq_len) == pytest.approx(sum(filled) / (len(plan) * seq_len))


def best_rows(lengths, seq_len, rows=()):
    """The fewest rows, by trying everything."""
    if not lengths:
        return len(rows)
    first, *rest = lengths
    grown = [(*rows[:i], row + first, *rows[i + 1 :]) for i, row in enumerate(rows)]
    tried = [new for new in {tuple(sorted(r)) for r in grown} if max(new) <= seq_len]
    return min(best_rows(rest, seq_len, new) for new in [*tried, (*rows, first)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 12))
def test_no_packing_is_fuller_than_possible(lengths, seq_len):
    fitting = [length for length in lengths if length <= seq_len]
    bound = packing.possible_fill(np.array(lengths), seq_len)
    if fitting:
        assert bound >= sum(fitting) / (best_rows(fitting, seq_len) * seq_len) - 1e-9
        assert bound <= 1


def test_what_is_possible_of_long_records():
    assert packing.possible_fill(np.array([6, 6, 6, 6]), 10) == 0.6  # no two in a row
    assert packing.possible_fill(np.array([6, 6, 4, 4]), 10) == 1.0
    assert packing.possible_fill(np.array([8, 8, 8, 3, 3]), 10) == 0.75  # no 3 beside an 8
    assert packing.possible_fill(np.array([11]), 10) == 0


def speech(median, seconds):
    """Columns of 20,000 utterances with a long tail, none above 30 s, as corpora cut them."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), 0.6, 20_000)
    return np.ceil(np.clip(drawn, 0.5, 30.0) * seconds).astype(int)


@pytest.mark.parametrize(
    ("median", "columns_a_second", "seq_len"),
    [(3, 4, 128), (6, 4, 128), (12, 4, 256), (6, 12.5, 512), (12, 12.5, 512), (12, 25, 1024),
     (6, 50, 2048)],
)  # fmt: skip
def test_rows_are_nearly_full(median, columns_a_second, seq_len):
    lengths = speech(median, columns_a_second)
    plan = packing.pack(lengths, seq_len, 0)
    assert plan.skipped == 0
    assert plan.fill(seq_len) > 0.99


def test_rows_are_as_full_as_can_be_where_utterances_are_longer_than_half_a_row():
    lengths = np.random.default_rng(0).integers(60, 120, 3_000)
    fill = packing.pack(lengths, 128, 0).fill(128)
    assert fill < 0.95  # impossible there
    assert fill > 0.99 * packing.possible_fill(lengths, 128)


def test_the_seed_decides_who_shares_a_row():
    lengths = np.full(100, 10)
    rows = [packing.pack(lengths, 30, seed).row(0).tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_best_fit_fills_a_hole_exactly():
    plan = packing.pack(np.array([7, 6, 4, 3]), 10, 0)
    assert sorted(sorted(plan.row(r).tolist()) for r in range(len(plan))) == [[0, 3], [1, 2]]


def test_a_plan_is_made_once(tmp_path, monkeypatch):
    lengths = np.random.default_rng(0).integers(0, 50, 500)
    made = packing.cached_plan(tmp_path, lengths, "key", 40, 3)
    monkeypatch.setattr(packing, "pack", None)
    read = packing.cached_plan(tmp_path, lengths, "key", 40, 3)
    assert [made.row(r).tolist() for r in range(len(made))] == [
        read.row(r).tolist() for r in range(len(read))
    ]
    assert read.skipped == made.skipped == (lengths == 0).sum() + (lengths > 40).sum()
    for other in (("key", 41, 3), ("key", 40, 4), ("other", 40, 3)):
        with pytest.raises(TypeError):  # another key is another plan, to be made
            packing.cached_plan(tmp_path, lengths, *other)


def test_a_damaged_cache_is_made_again(tmp_path):
    made = packing.cached_array(tmp_path, "key", lambda: np.arange(100))
    [path] = tmp_path.iterdir()
    for size in (0, 50, 200):
        os.truncate(path, size)
        again = packing.cached_array(tmp_path, "key", lambda: np.arange(100))
        np.testing.assert_array_equal(again, made)
    assert list(tmp_path.iterdir()) == [path]
