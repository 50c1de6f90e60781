import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.audio.features import MelConfig
from slm_jax.tokenizers.taste_decoder import (
    TasteDecoder,
    TasteDecoderConfig,
    monotonic_alignment,
    round_durations,
    word_times,
)
from slm_jax.tokenizers.taste_text import read_text


def best_by_hand(scores):
    count, length = scores.shape
    best, found = -np.inf, None
    for cuts in itertools.combinations(range(1, length), count - 1):
        ends = [*cuts, length]
        starts = [0, *cuts]
        total = sum(scores[n, a:b].sum() for n, (a, b) in enumerate(zip(starts, ends, strict=True)))
        if total > best:
            best, found = total, np.diff([0, *ends])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_the_best_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 4, 9)).astype(np.float32)
    counts, lengths = np.array([4, 3]), np.array([9, 7])
    durations = np.asarray(
        monotonic_alignment(jnp.asarray(scores), jnp.asarray(counts), jnp.asarray(lengths))
    )
    for row, (n, t) in enumerate(zip(counts, lengths, strict=True)):
        np.testing.assert_array_equal(durations[row, :n], best_by_hand(scores[row, :n, :t]))
        assert durations[row, n:].sum() == 0


def test_rounding_keeps_the_sum_and_padding_silent():
    ids = jnp.array([[5, 5, 5, 5, 0, 0]])
    durations = round_durations(jnp.log(jnp.array([[2.4, 2.4, 2.4, 2.4, 9.0, 9.0]])), ids)
    assert durations[0, :4].sum() == 10 and durations[0, 4:].sum() == 0
    assert set(np.asarray(durations[0, :4]).tolist()) <= {2, 3}


def test_word_times_leave_out_the_pause():
    text = read_text(["ab", "c"], {})
    durations = np.array([5, 2, 3, 4, 6, 7])  # BEGIN a b space c END
    assert word_times(durations, text, 2, 0.5) == [(2.5, 5.0), (7.0, 10.0)]


def test_an_autoregressive_decoder_rolls_out_what_it_learns_by_teacher_forcing():
    """Given the frames it made itself as the real ones, and the same dropout, it makes them
    again."""
    mel = MelConfig(n_mels=6)
    config = TasteDecoderConfig(8, 8, 1, 1, 8, 8, 2, stride=2, autoregressive=True)
    decoder = TasteDecoder(config, mel, 4, 3, rngs=nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(1), (1, 5, 8))
    durations = jnp.array([[2, 1, 3, 2, 2]])
    x, _ = decoder._inputs(hidden, durations, 10)
    made = decoder._roll(x)
    assert made.mel.shape == (1, 10, 6) and made.pitch.shape == (1, 10)
    shown = jnp.concatenate(
        [made.mel, made.pitch[..., None], (made.voicing > 0).astype(float)[..., None]], axis=-1
    ).reshape(1, 5, 16)
    before = jnp.pad(shown[:, :-1], ((0, 0), (1, 0), (0, 0)))
    keys = [jax.random.fold_in(jax.random.key(0), t) for t in range(5)]
    heard = [decoder._heard_before(before[:, t], key) for t, key in enumerate(keys)]
    again = decoder._frames(decoder.frames(x + jnp.stack(heard, 1), jnp.ones((1, 5))))
    np.testing.assert_allclose(again.mel, made.mel, atol=1e-5)
    assert decoder.frame_lookahead == 1  # the other frame of its pair
