"""Unit quality against figures worked out by hand, and against chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_jax.evaluation.tokenizers.unit_quality import (
    SILENCE,
    Item,
    Phone,
    abx,
    agreement,
    angle,
    frame_labels,
    phone_items,
    unequal,
    warped,
)


def test_a_frame_is_labelled_by_its_middle():
    phones = [Phone("AA", 0.0, 0.05), Phone("T", 0.05, 0.1)]
    assert frame_labels(phones, 50, 6).tolist() == ["AA", "AA", "T", "T", "T", SILENCE]


def test_units_that_are_phones_know_all_and_one_unit_knows_nothing():
    phones = np.array(["a", "b", "c", "a"] * 50, dtype=object)
    perfect = agreement(phones, np.array([7, 3, 5, 7] * 50))
    assert perfect["pnmi"] == pytest.approx(1) and perfect["pnmi_shuffled"] < 0.1
    assert perfect["phone_purity"] == perfect["cluster_purity"] == pytest.approx(1)
    blind = agreement(phones, np.zeros(200, int))
    assert blind["pnmi"] == pytest.approx(0, abs=1e-12)
    assert blind["phone_purity"] == pytest.approx(0.5)  # "a" is half of all


def test_agreement_by_hand():
    """Unit 0 is a, a, b and unit 1 is b: H(phone) = ln 2, and I = ln 2 - 3/4 H(1/3)."""
    phones = np.array(["a", "a", "b", "b", SILENCE], dtype=object)
    found = agreement(phones, np.array([0, 0, 0, 1, 9]))
    third = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    assert found["pnmi"] == pytest.approx((np.log(2) - 0.75 * third) / np.log(2))
    assert found["phone_purity"] == pytest.approx(0.75) and found["frames"] == 4
    assert found["cluster_purity"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="two phones"):
        agreement(phones[:2], np.array([0, 1]))


@given(st.integers(2, 40), st.integers(0, 10))
def test_more_units_look_better_by_chance_alone(units, seed):
    """Random units: their PNMI is that of the shuffle, so the difference is about nothing."""
    rng = np.random.default_rng(seed)
    phones = rng.choice(np.array(["a", "b", "c"], dtype=object), 600)
    found = agreement(phones, rng.integers(0, units, 600))
    assert abs(found["pnmi"] - found["pnmi_shuffled"]) < 0.05


def test_warping_follows_the_cheapest_path():
    costs = np.array([[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]])
    assert warped(costs) == 0
    assert warped(np.array([[1.0]])) == 1
    assert warped(np.array([[1.0, 3.0]])) == 2


def test_abx_tells_phones_apart_within_and_across_speakers():
    def items(speaker, offset):
        return [
            Item(name, ("x", "y"), speaker, np.array([code + offset] * 3))
            for name, code in (("a", 0), ("b", 5))
            for _ in range(2)
        ]

    one = items("s", 0)
    assert abx(one, unequal, across=False) == {"error": 0.0, "triples": 8}
    assert np.isnan(abx(one, unequal, across=True)["error"])
    # t's "a" is s's "b": half of the X are a B (wrong), the others neither (a tie).
    assert abx(one + items("t", 5), unequal, across=True)["error"] == 0.75
    blind = [item._replace(frames=np.zeros(3, int)) for item in one]
    assert abx(blind, unequal, across=False)["error"] == 0.5


def test_distances():
    a = np.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(angle(a, a), [[0, 0.5], [0.5, 0]], atol=1e-6)
    np.testing.assert_array_equal(unequal(np.array([1, 2]), np.array([1])), [[0], [1]])
    levels = np.array([[1, 2], [1, 3]])
    np.testing.assert_array_equal(unequal(levels, levels), [[0, 0.5], [0.5, 0]])


def test_items_have_touching_neighbours():
    phones = [Phone("a", 0, 0.1), Phone("b", 0.1, 0.2), Phone("c", 0.2, 0.3), Phone("d", 0.5, 0.6)]
    found = phone_items(phones, np.arange(30), 50, "s")
    assert [(i.name, i.context) for i in found] == [("b", ("a", "c"))]
    np.testing.assert_array_equal(found[0].frames, np.arange(5, 10))
