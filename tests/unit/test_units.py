import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_jax.tokenizers.units import deduplicate, repeat

# Few different units make long runs.
sequences = st.lists(st.integers(-2, 2) | st.integers(0, 2**31 - 1)).map(
    lambda units: np.array(units, np.int32)
)


@given(sequences)
def test_repeat_undoes_deduplicate(units):
    runs = deduplicate(units)
    assert runs.units.dtype == runs.durations.dtype == np.int32
    np.testing.assert_array_equal(repeat(*runs), units)


@given(sequences)
def test_runs_are_those_of_itertools(units):
    runs = deduplicate(units)
    expected = [(unit, len(list(run))) for unit, run in itertools.groupby(units.tolist())]
    assert list(zip(runs.units.tolist(), runs.durations.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4))))
def test_repeat_drops_units_of_no_duration(pairs):
    units, durations = [unit for unit, _ in pairs], [duration for _, duration in pairs]
    expected = [unit for unit, duration in pairs for _ in range(duration)]
    assert repeat(np.array(units, int), np.array(durations, int)).tolist() == expected


def test_nothing_has_no_runs():
    runs = deduplicate(np.zeros(0, np.int32))
    assert len(runs.units) == len(runs.durations) == len(repeat(*runs)) == 0


def test_what_is_no_sequence_is_refused():
    with pytest.raises(ValueError, match="wanted int"):
        deduplicate(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="wanted int"):
        deduplicate(np.array([0.5]))
    with pytest.raises(ValueError, match="2 units"):
        repeat(np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match="negative"):
        repeat(np.array([1, 2]), np.array([1, -1]))
