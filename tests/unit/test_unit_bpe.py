import functools

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from slm_jax.errors import UserError
from slm_jax.tokenizers.unit_bpe import FIRST, MOST_UNITS, UnitBpe

UNITS = 50


def corpus() -> list[np.ndarray]:
    """Sequences of a few motifs over the first 20 units; the other 30 never occur."""
    rng = np.random.default_rng(0)
    motifs = [rng.integers(0, 20, size) for size in (2, 3, 5, 8)]
    return [np.concatenate([motifs[i] for i in rng.integers(4, size=30)]) for _ in range(40)]


@functools.cache
def trained() -> UnitBpe:
    return UnitBpe.train(corpus(), UNITS, 90)


@settings(deadline=None)
@given(st.lists(st.integers(0, 19) | st.integers(0, UNITS - 1)))
def test_decode_undoes_encode_for_seen_and_unseen_units(units):
    ids = trained().encode(np.array(units, np.int32))
    assert ids.dtype == np.int32 and len(ids) <= len(units)
    assert trained().decode(ids).tolist() == units


@settings(deadline=None)
@given(st.lists(st.integers(0, 89)))
def test_any_ids_decode_to_units_that_have_an_encoding(ids):
    units = trained().decode(ids)
    assert units.dtype == np.int32
    np.testing.assert_array_equal(trained().decode(trained().encode(units)), units)


def test_frequent_sequences_become_one_id():
    assert trained().vocab_size == 90 and trained().units == UNITS
    for sequence in corpus():
        ids = trained().encode(sequence)
        assert len(ids) < len(sequence) / 2
        np.testing.assert_array_equal(trained().decode(ids), sequence)
    np.testing.assert_array_equal(trained().encode(np.arange(30, 50)), np.arange(30, 50))


def test_the_most_frequent_pair_is_merged_first():
    made = UnitBpe.train([np.array([0, 1, 2, 0, 1, 3, 0, 1, 2])], 4, 6)
    assert [made.decode([index]).tolist() for index in range(4, 6)] == [[0, 1], [0, 1, 2]]
    assert made.encode(np.array([0, 1, 2, 0, 1])).tolist() == [5, 4]


def test_no_pair_is_learned_across_sequences_or_from_one_sight():
    made = UnitBpe.train([np.array([0, 1]), np.array([2]), np.array([3, 4])], 5, 100)
    assert made.vocab_size == 5


def test_nothing_encodes_to_nothing():
    assert len(trained().encode(np.zeros(0, np.int32))) == len(trained().decode([])) == 0
    assert UnitBpe.train([], 3, 10).encode(np.array([2, 0, 1])).tolist() == [2, 0, 1]


def test_the_largest_inventory_has_a_character_for_each_unit():
    made = UnitBpe.train([np.array([MOST_UNITS - 1, 0] * 3)], MOST_UNITS, MOST_UNITS + 1)
    assert made.units == MOST_UNITS
    ids = made.encode(np.array([MOST_UNITS - 1, 0, MOST_UNITS - 2]))
    assert ids.tolist() == [MOST_UNITS, MOST_UNITS - 2]
    assert made.decode(ids).tolist() == [MOST_UNITS - 1, 0, MOST_UNITS - 2]


@pytest.mark.parametrize("unit", [-1, UNITS])
def test_units_out_of_range_are_refused(unit):
    with pytest.raises(ValueError, match=f"of {UNITS}"):
        trained().encode(np.array([0, unit]))
    with pytest.raises(ValueError, match=f"of {UNITS}"):
        UnitBpe.train([np.array([0, unit])], UNITS, 60)


@pytest.mark.parametrize("index", [-1, 90])
def test_ids_out_of_range_are_refused(index):
    with pytest.raises(ValueError, match="of 90"):
        trained().decode([0, index])


@pytest.mark.parametrize(("units", "ids"), [(0, 10), (11, 10), (MOST_UNITS + 1, MOST_UNITS + 1)])
def test_impossible_sizes_are_refused(units, ids):
    with pytest.raises(ValueError, match=f"{units} units"):
        UnitBpe.train([], units, ids)


def test_a_saved_encoder_is_the_same_again(tmp_path):
    path = tmp_path / "units.json"
    trained().save(path)
    loaded = UnitBpe.load(path)
    assert (loaded.units, loaded.vocab_size) == (UNITS, 90)
    assert loaded.fingerprint == trained().fingerprint
    for sequence in corpus():
        np.testing.assert_array_equal(loaded.encode(sequence), trained().encode(sequence))
    assert UnitBpe.train(corpus(), UNITS, 80).fingerprint != loaded.fingerprint


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "units.json"
    with pytest.raises(UserError, match="does not exist"):
        UnitBpe.load(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="no BPE over units"):
        UnitBpe.load(path)
    for vocabulary in ({"a": 0}, {chr(FIRST): 1}, {chr(FIRST): 1, chr(FIRST + 1): 0}):
        tokenizers.Tokenizer(models.BPE(vocabulary, [])).save(str(path))
        with pytest.raises(UserError, match="no BPE over units"):
            UnitBpe.load(path)
