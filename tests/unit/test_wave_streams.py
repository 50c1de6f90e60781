"""Samples as a stream of codes, and our codec's latents as a stream of vectors."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_codecs import FRAME_CODEC, random_network

from slm_jax.errors import UserError
from slm_jax.nn.quantizers import rvq_encode
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec, FrameCodecNetwork
from slm_jax.tokenizers.codecs.frame_latents import FrameLatents
from slm_jax.tokenizers.mulaw import CODES, MuLaw

HOP = FRAME_CODEC.hop


def audio(rows, samples, seed=0):
    return (np.random.default_rng(seed).normal(size=(rows, samples)) * 0.1).astype(np.float32)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.integers(0, 50))
def test_mu_law_is_finest_where_it_is_quiet_and_samples_do_not_know_each_other(samples, cut):
    tokenizer, row = MuLaw(8000), np.array([samples], np.float32)
    codes, lengths = tokenizer.encode(row, [len(samples)])
    assert codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < CODES
    heard = tokenizer.decode(codes, lengths)
    # Half a step of the code is ln(256) / 255 of (1/255 + |x|).
    np.testing.assert_array_less(np.abs(heard - row), 0.022 * (1 / 255 + np.abs(row)) + 1e-6)
    np.testing.assert_array_equal(tokenizer.encode(heard, lengths)[0], codes)
    parts = [part for part in np.split(row, [cut], axis=1) if part.size]
    apart = [tokenizer.encode(part, [part.shape[1]])[0] for part in parts]
    np.testing.assert_array_equal(np.concatenate(apart, axis=1), codes)


def test_mu_law_has_the_codes_that_g711_is_made_from():
    codes, _ = MuLaw(8000).encode(np.array([[-1, -1 / 255, 0, 1 / 255, 1, 3]], np.float32), [6])
    small = np.log(2) / np.log(256)  # of 1 / 255
    wanted = [0, 127.5 * (1 - small), 127.5, 127.5 * (1 + small), 255, 255]
    np.testing.assert_array_equal(codes[0, :, 0], np.floor(np.array(wanted) + 0.5))


def test_mu_law_keeps_rows_apart_and_refuses_what_is_no_audio():
    tokenizer = MuLaw(1000)
    assert tokenizer.spec.clock == tokenizer.sample_rate == 1000 and tokenizer.spec.bits == 8
    assert tokenizer.spec.fingerprint != MuLaw(2000).spec.fingerprint
    codes, frames = tokenizer.encode(audio(2, 90), np.array([90, 30]))
    assert frames.tolist() == [90, 30] and not codes[1, 30:].any()
    assert not tokenizer.decode(codes, frames)[1, 30:].any()
    with pytest.raises(UserError, match="row 0"):
        tokenizer.encode(np.full((1, 4), np.nan, np.float32), [4])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode(np.full((1, 4, 1), CODES), [4])


@pytest.fixture(scope="module")
def network():
    return random_network(lambda: FrameCodecNetwork(FRAME_CODEC, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def latents(network):
    return FrameLatents(network)


def test_latents_are_what_the_codec_quantises(network, latents):
    codec = FrameCodec(network, FRAME_CODEC.rvq.levels)
    sound, lengths = audio(2, 6 * HOP), np.array([6 * HOP, 3 * HOP - 1])
    vectors, frames = latents.encode(sound, lengths)
    assert vectors.shape == (2, 6, latents.spec.width) and vectors.dtype == np.float32
    assert not np.asarray(vectors[1, 3:]).any()
    codes, same = codec.encode(sound, lengths)
    np.testing.assert_array_equal(frames, same)
    books = np.asarray(network.codebooks[...])
    mean, deviation = books.mean(1).sum(0), np.sqrt(books.var(1).sum(0) + 1e-8)
    found = rvq_encode(books, np.asarray(vectors) * deviation + mean)
    np.testing.assert_array_equal(found[0], codes[0])
    assert latents.spec.clock == codec.spec.clock
    assert latents.spec.fingerprint != codec.spec.fingerprint


def test_latents_of_code_vectors_sound_as_the_codes_do(network, latents):
    codec = FrameCodec(network, FRAME_CODEC.rvq.levels)
    codes = np.random.default_rng(0).integers(0, 32, (1, 5, 3)).astype(np.int32)
    books = np.asarray(network.codebooks[...])
    sums = sum(books[k][codes[..., k]] for k in range(3))
    mean, deviation = books.mean(1).sum(0), np.sqrt(books.var(1).sum(0) + 1e-8)
    heard = latents.decode((sums - mean) / deviation, np.array([5]))
    np.testing.assert_allclose(heard, codec.decode(codes, np.array([5])), atol=1e-5)
    with pytest.raises(ValueError, match="wanted float"):
        latents.decode(np.zeros((1, 5, 3), np.float32), np.array([5]))


def test_latents_of_codes_used_alike_have_unit_variance(latents, network):
    rng, books = np.random.default_rng(0), np.asarray(network.codebooks[...])
    drawn = sum(book[rng.integers(0, len(book), 20_000)] for book in books)
    mean, deviation = (np.asarray(x) for x in latents.jit("scale")())
    made = (drawn - mean) / deviation
    np.testing.assert_allclose(made.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(made.std(0), 1, atol=0.05)
