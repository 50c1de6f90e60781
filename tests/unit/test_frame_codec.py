"""Our codec with random weights: streams equal whole rows, rows do not know each other."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.errors import UserError
from slm_jax.nn.quantizers import RvqConfig
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.codecs.frame_codec import (
    FrameCodec,
    FrameCodecConfig,
    FrameCodecNetwork,
    save_codec,
)

HOP = 16
CONFIG = FrameCodecConfig(
    sample_rate=16_000,
    hop=HOP,
    width=24,
    mlp=32,
    encoder_layers=2,
    decoder_layers=2,
    rvq=RvqConfig(levels=3, codes=32, width=8),
)


def random_params(config=CONFIG):
    params = pure_params(FrameCodecNetwork(config, rngs=nnx.Rngs(0)))[1]
    shape = params["codebooks"].shape
    params["codebooks"] = jax.random.normal(jax.random.key(1), shape) * 0.5
    return params


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    save_codec(folder, CONFIG, random_params())
    return FrameCodec.load(folder)


def audio(rows, samples, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, samples)).astype(np.float32) * 0.1


def test_what_it_says_of_itself(codec):
    assert codec.spec.vocab == (32, 32, 32) and codec.spec.clock == 1000
    assert codec.spec.lookahead == 0 and codec.delay == 2 * HOP
    codes, frames = codec.encode(audio(2, 5 * HOP), np.array([5 * HOP, 3 * HOP - 1]))
    assert codes.shape == (2, 5, 3) and frames.tolist() == [5, 3]
    assert len(np.unique(codes[0])) > 5  # the weights give different codes
    assert (np.asarray(codes[1, 3:]) == 0).all()
    said = codec.decode(codes, frames)
    assert said.shape == (2, 5 * HOP) and (np.asarray(said[1, 3 * HOP :]) == 0).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 6 * HOP), st.integers(0, 100))
def test_a_row_is_the_same_alone_and_in_a_batch(codec, samples, seed):
    rows = audio(2, 6 * HOP, seed)
    lengths = np.array([samples, 6 * HOP])
    codes, frames = codec.encode(rows, lengths)
    alone, count = codec.encode(rows[:1, :samples], lengths[:1])
    assert frames[0] == count[0] == -(-samples // HOP)
    np.testing.assert_array_equal(codes[0, : count[0]], alone[0])
    together = codec.decode(codes, frames)[0, : count[0] * HOP]
    np.testing.assert_allclose(together, codec.decode(alone, count)[0], atol=1e-5)


@pytest.mark.parametrize("chunks", [(7,), (1, 1, 1, 1, 1, 1, 1), (3, 4)])
def test_a_stream_gives_what_whole_rows_give_later(codec, chunks):
    rows = audio(2, 7 * HOP, 3)
    codes, frames = codec.encode(rows, np.full(2, 7 * HOP))
    whole = np.asarray(codec.decode(codes, frames))
    state, heard, said, at = codec.init_state(2), [], [], 0
    for count in chunks:
        found, state = codec.encode_step(state, rows[:, at * HOP : (at + count) * HOP])
        sound, state = codec.decode_step(state, found)
        heard, said, at = [*heard, found], [*said, sound], at + count
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), codes)
    stream = np.concatenate([*said, codec.flush(state)], axis=1)
    np.testing.assert_allclose(stream[:, codec.delay :], whole, atol=1e-5)


def test_it_is_causal(codec):
    """Codes of frame t know nothing after its end, and audio nothing after its frame."""
    rows = audio(1, 6 * HOP, 4)
    changed = rows.copy()
    changed[:, 4 * HOP :] = 0.3
    codes, _ = codec.encode(rows, np.array([6 * HOP]))
    others, _ = codec.encode(changed, np.array([6 * HOP]))
    np.testing.assert_array_equal(codes[:, :4], others[:, :4])
    assert (np.asarray(codes[:, 4:]) != np.asarray(others[:, 4:])).any()


def test_fewer_levels_are_the_coarse_ones(codec, tmp_path):
    save_codec(tmp_path, CONFIG, random_params())
    coarse = FrameCodec.load(tmp_path, levels=2)
    rows, lengths = audio(1, 4 * HOP), np.array([4 * HOP])
    np.testing.assert_array_equal(
        coarse.encode(rows, lengths)[0], codec.encode(rows, lengths)[0][..., :2]
    )
    assert coarse.spec.vocab == (32, 32) and coarse.spec.fingerprint != codec.spec.fingerprint
    with pytest.raises(UserError, match="3 levels"):
        FrameCodec.load(tmp_path, levels=4)


def test_chunks_are_whole_frames(codec):
    with pytest.raises(ValueError, match="whole frames of 16"):
        codec.encode_step(codec.init_state(1), audio(1, HOP + 1))


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        FrameCodec.load(tmp_path)
    save_codec(tmp_path, CONFIG, random_params())
    (tmp_path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        FrameCodec.load(tmp_path)
    params = random_params()
    del params["hear"]
    save_codec(tmp_path, CONFIG, params)
    with pytest.raises(UserError, match="hear/kernel"):
        FrameCodec.load(tmp_path)
    (tmp_path / "config.json").write_text('{"rvq": {}, "hops": 1}')
    with pytest.raises(UserError, match="not the configuration"):
        FrameCodec.load(tmp_path)
