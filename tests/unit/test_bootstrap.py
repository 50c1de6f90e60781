import numpy as np
import pytest

from slm_jax.evaluation.bootstrap import ratio


def test_a_ratio_of_sums_and_its_interval():
    found = ratio([1, 0, 2, 1], [10, 10, 20, 10])
    assert found.value == pytest.approx(4 / 50)
    assert found.low < found.value < found.high and found.n == 4
    assert found == ratio([1, 0, 2, 1], [10, 10, 20, 10])


def test_means_need_no_denominators():
    assert ratio([1.0, 2.0, 6.0], None).value == pytest.approx(3)
    np.testing.assert_allclose([getattr(ratio([2, 2], None), k) for k in ("low", "high")], 2)


def test_the_interval_is_that_of_theory():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = ratio(values, None)
    spread = 1.96 * values.std() / np.sqrt(len(values))
    assert found.high - found.value == pytest.approx(spread, rel=0.1)
    assert found.value - found.low == pytest.approx(spread, rel=0.1)


def test_pairing_takes_out_what_two_systems_share():
    rng = np.random.default_rng(0)
    hard = rng.poisson(3, 200)  # errors that any system makes here
    words = np.full(200, 10)
    ours, theirs = hard + rng.poisson(0.5, 200), hard
    paired, alone = ratio(ours - theirs, words), ratio(ours, words)
    assert paired.value == pytest.approx(alone.value - ratio(theirs, words).value)
    assert paired.low > 0 and paired.high - paired.low < 0.6 * (alone.high - alone.low)


def test_what_failed_is_left_out():
    assert ratio([1, np.nan, 3], [2, 2, np.nan]).value == pytest.approx(0.5)
    assert ratio([1, np.nan, 3], [2, 2, np.nan]).n == 1
    assert ratio([np.nan], [1]) is None and ratio([], []) is None and ratio([0], [0]) is None
