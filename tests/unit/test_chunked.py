"""Codecs that look ahead: streams of them give what whole rows give, with tiny random models."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from codec_checks import assert_varied, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codecs import TINY_CODECS

from slm_jax.tokenizers.chunked import Window, WindowStream, decode_stream, encode_stream, reach
from slm_jax.tokenizers.codecs.snac import decoder_noise

LONGEST = 500  # samples of a row
MOST = 90  # frames of it, of any codec; a multiple of what blocks hold


KINDS = ("dac_odd", "snac_attention", "encodec_48khz")


@pytest.fixture(scope="module", params=KINDS)
def codec(request):
    return TINY_CODECS[request.param]()


def through(stream, row, cuts):
    """A row pushed in pieces that end at `cuts`."""
    ends = [0, *sorted(cut % (len(row) + 1) for cut in cuts), len(row)]
    found = [out for a, b in itertools.pairwise(ends) for out in stream.push(row[a:b])]
    return np.concatenate(found + stream.finish())


@settings(max_examples=6, deadline=None)
@given(
    samples=st.integers(1, LONGEST),
    cuts=st.lists(st.integers(0, LONGEST), max_size=4),
)
def test_streams_equal_whole_rows(codec, samples, cuts):
    [row] = noise([samples], seed=samples)
    padded = np.pad(row, (0, LONGEST - samples))[None]
    codes, frames = codec.encode(padded, [samples])
    codes = np.asarray(codes)[0, : int(frames[0])]
    streamed = through(encode_stream(codec, 2), row, cuts)
    np.testing.assert_array_equal(streamed, codes)
    most = np.pad(codes, ((0, MOST - len(codes)), (0, 0)))[None]
    audio = np.asarray(codec.decode(most, [len(codes)]))[0]
    audio = audio[: len(codes) * codec.blocks.samples // codec.blocks.frames + codec.blocks.tail]
    spoken = through(decode_stream(codec, 2), codes, cuts)
    assert spoken.shape == audio.shape and audio.std() > 1e-3
    assert np.abs(spoken - audio).max() <= 1e-5


@pytest.mark.parametrize("codec", ["dac_odd", "encodec_48khz"], indirect=True)
def test_windows_without_context_give_something_else(codec):
    [row] = noise([LONGEST])
    codes, _ = codec.encode(row[None], [LONGEST])
    assert_varied(np.asarray(codes[0]), least=4)
    whole = codec.blocks
    try:
        codec.blocks = whole._replace(heard=(0, 1))
        narrow = through(encode_stream(codec, 2), row, [])
    finally:
        codec.blocks = whole
    assert (narrow[: codes.shape[1]] != np.asarray(codes[0])).any()


def test_an_item_hears_no_further_than_it_says(codec):
    """The frame before the middle of a row is the same whatever comes after its look-ahead."""
    [row], [other] = noise([LONGEST]), noise([LONGEST], seed=1)
    per_frame = codec.sample_rate / codec.spec.clock
    frame = int(LONGEST / 2 / per_frame)
    heard = round((frame + 1) * per_frame + codec.spec.lookahead * codec.sample_rate)
    changed = np.concatenate([row[:heard], other[heard:]])
    (one, _), (two, _) = (codec.encode(x[None], [LONGEST]) for x in (row, changed))
    np.testing.assert_array_equal(one[0, : frame + 1], two[0, : frame + 1])
    assert heard >= LONGEST or (np.asarray(one) != np.asarray(two)).any()


def test_windows_are_what_they_say():
    """A function that shows its input: every window's, and what is kept of it."""
    seen = []

    def run(piece, start):
        seen.append((start, len(piece)))
        return np.repeat(piece, 2)

    stream = WindowStream(run, Window(step=4, before=2, after=3, out=8))
    row = np.arange(13)
    assert [len(out) for out in stream.push(row[:6])] == []
    assert [len(out) for out in stream.push(row[6:7])] == [8]
    found = stream.push(row[7:]) + stream.finish()
    assert [len(out) for out in found] == [8, 8, 2]
    assert seen == [(0, 7), (2, 9), (6, 7), (10, 3)]
    assert np.concatenate(found).tolist() == np.repeat(row, 2)[8:].tolist()
    assert reach((-5, 7), 4) == (8, 4) and reach((0, 3), 4) == (0, 0)


def test_an_empty_row_has_no_codes(codec):
    stream = encode_stream(codec, 2)
    assert stream.push(np.zeros(0, np.float32)) == []
    assert sum(len(out) for out in stream.finish()) == 0


def test_noise_of_a_place_is_that_of_the_row():
    whole = decoder_noise(1, 50)
    np.testing.assert_array_equal(decoder_noise(1, 20, jnp.int32(30)), whole[30:])
    assert abs(float(decoder_noise(0, 4000).std()) - 1) < 0.05
