import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.tokenizers import alignment
from slm_jax.tokenizers.segmenters import CharacterSegmenter, WhitespaceSegmenter


def cheapest(cost: np.ndarray) -> float:
    """Cost of the best path, by the definition."""
    rows, columns = cost.shape
    best = np.full((rows, columns), np.inf)
    for i, j in itertools.product(range(rows), range(columns)):
        before = [best[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 <= b]
        best[i, j] = cost[i, j] + (min(before) if before else 0.0)
    return best[-1, -1]


def cost_of(cost: np.ndarray, starts: np.ndarray) -> float:
    """Cost of the cheapest path that enters each row at the given column."""
    total = 0.0
    for row, start in enumerate(starts):
        last = row + 1 == len(starts)
        stop = cost.shape[1] - 1 if last else starts[row + 1]
        upright = total + cost[row, start : stop + 1].sum()
        diagonal = np.inf if last or stop == start else total + cost[row, start:stop].sum()
        total = min(upright, diagonal)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_dtw_finds_the_cheapest_path(rows, columns, seed):
    cost = np.random.default_rng(seed).random((rows, columns))
    starts = alignment.dtw_row_starts(cost)
    assert starts[0] == 0 and (np.diff(starts) >= 0).all() and starts[-1] < columns
    assert cost_of(cost, starts) == pytest.approx(cheapest(cost))


def test_median_filter_is_that_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.random.default_rng(0).random((3, 5, 40))
    expected = ndimage.median_filter(x, size=(1, 1, 7), mode="mirror")
    np.testing.assert_array_equal(alignment.median_filter(x, 7), expected)
    np.testing.assert_array_equal(alignment.median_filter(x[..., :3], 7), x[..., :3])


def test_token_starts_follow_the_attention():
    prompt, edges = 2, [0, 20, 50, 60, 90]  # four tokens, and what follows them from frame 90
    scores = np.random.default_rng(0).normal(size=(3, prompt + 5, 100)) * 0.3
    for token, (start, stop) in enumerate(itertools.pairwise([*edges, 100])):
        scores[:, prompt - 1 + token, start:stop] += 6.0
    starts = alignment.token_starts(scores.astype(np.float32), prompt)
    assert np.abs(starts - edges).max() <= 2


def test_words_take_the_times_of_their_tokens():
    edges, tokens = alignment.word_edges(
        ["Hello", "world."],
        WhitespaceSegmenter(),
        byte_lengths=[6, 4, 2, 1],  # " Hello" " wor" "ld" "."
        token_edges=np.array([0.0, 0.5, 0.7, 0.9, 1.0]),
    )
    assert edges == pytest.approx([0.0, 0.5, 1.0])
    assert tokens.tolist() == [[0, 1], [1, 4]]


def test_characters_divide_a_token_by_bytes():
    edges, tokens = alignment.word_edges(
        ["今", "天", "好"],
        CharacterSegmenter(),
        byte_lengths=[6, 1, 2],  # two characters in one token, one character in two
        token_edges=np.array([0.0, 0.4, 0.5, 0.7]),
    )
    assert edges == pytest.approx([0.0, 0.2, 0.4, 0.7])
    assert tokens.tolist() == [[0, 1], [0, 1], [1, 3]]


def speech(*bursts: tuple[float, float], duration: float) -> np.ndarray:
    """Noise at the given seconds, faint noise elsewhere."""
    audio = np.random.default_rng(0).normal(size=int(duration * 16_000)) * 1e-4
    for start, end in bursts:
        audio[int(start * 16_000) : int(end * 16_000)] *= 1e3
    return audio.astype(np.float32)


def test_silence_around_words_is_cut_away():
    audio = speech((0.3, 0.7), (1.2, 1.5), duration=2.0)
    intervals = alignment.spoken_intervals(np.array([0.0, 1.1 + alignment.LAG, 1.9]), audio)
    assert np.abs(intervals - [[0.3, 0.7], [1.2, 1.5]]).max() < 0.0101


def test_words_of_a_pause_keep_their_place():
    audio = speech((0.0, 0.5), duration=2.0)
    intervals = alignment.spoken_intervals(np.array([0.0, 0.9, 1.4]), audio)
    assert intervals[1] == pytest.approx([0.9 - alignment.LAG, 1.4])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 3), min_size=2, max_size=12).map(sorted),
    st.floats(0.06, 3),
    st.booleans(),
)
def test_intervals_are_ordered_and_inside(edges, duration, silent):
    audio = speech((0.0, 0.1), (0.4, 1.0), (1.1, 3.0), duration=duration)
    intervals = alignment.spoken_intervals(np.array(edges), audio * (not silent))
    assert (intervals[:, 0] < intervals[:, 1]).all()
    assert (intervals[:-1, 1] <= intervals[1:, 0] + 1e-9).all()
    assert intervals[0, 0] >= 0 and intervals[-1, 1] <= len(audio) / 16_000 + 1e-9
