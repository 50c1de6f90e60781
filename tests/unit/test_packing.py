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


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(10, 120, 3_000)
    assert packing.pack(lengths, 512, 0).fill(512) > 0.99


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
