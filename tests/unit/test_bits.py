import numpy as np
import pytest

from slm_jax.evaluation.bits import bit_rate
from slm_jax.tokenizers.taste import round_speaker


def test_every_bit_is_counted_in_its_place():
    codes = [np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 1]])]
    rate = bit_rate(codes, (64, 64), [3, 5], 49_152, 32, [2.0, 2.0])
    assert rate["codes"]["value"] == pytest.approx(4 * 12 / 4)
    assert rate["text"]["value"] == pytest.approx(8 * np.log2(49_152) / 4)
    assert rate["speaker"]["value"] == pytest.approx(2 * 32 * 8 / 4)
    parts = sum(rate[name]["value"] for name in ("codes", "text", "speaker"))
    assert rate["total"]["value"] == pytest.approx(parts) and rate["total"]["n"] == 2
    # Level 0 is a fair coin, level 1 always the same: one bit a word.
    assert rate["codes_entropy"] == pytest.approx(4 * 1 / 4)
    assert rate["total_entropy"] == pytest.approx(parts - 12 + 1)
    assert [level["used"] for level in rate["levels"]] == [2, 1]


def test_a_rounded_speaker_fits_eight_bits():
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    vector /= np.linalg.norm(vector)
    rounded = round_speaker(vector)
    assert np.abs(rounded - vector).max() <= 0.5 / 127 + 1e-6
    levels = rounded * 127
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(levels).max() <= 127
