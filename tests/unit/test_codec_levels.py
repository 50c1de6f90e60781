"""The first levels of a codec: the same codes, another stream, asked for by one spelling."""

import numpy as np
import pytest
from flax import nnx
from tiny_codecs import FRAME_CODEC, TINY_CODECS, coarse, random_network

from slm_jax.errors import UserError
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.codecs.frame_codec import FrameCodecNetwork, save_codec
from slm_jax.tokenizers.codecs.kinds import load_codec


@pytest.mark.parametrize("kind", ["codec", "mimi", "encodec", "encodec_48khz", "dac", "snac"])
def test_coarse_levels_are_those_of_the_whole(kind):
    whole = TINY_CODECS[kind]()
    few = coarse(whole, 1 if kind.startswith("encodec") else 2)
    kept = few.spec.levels
    assert kept < whole.spec.levels and few.spec.fingerprint != whole.spec.fingerprint
    assert few.spec.vocab == whole.spec.vocab[:kept] and few.spec.clock == whole.spec.clock
    rows = (np.random.default_rng(0).normal(size=(1, 1500)) * 0.1).astype(np.float32)
    codes, frames = few.encode(rows, [1500])
    np.testing.assert_array_equal(codes, whole.encode(rows, [1500])[0][..., :kept])
    sound = np.asarray(few.decode(codes, frames))
    assert np.isfinite(sound).all() and sound.any()
    with pytest.raises(ValueError, match="levels"):
        few.decode(whole.encode(rows, [1500])[0], frames)


def test_a_slow_level_alone_is_heard():
    snac = coarse(TINY_CODECS["snac"](), 1)
    assert snac.counts == (1,) and snac.spec.levels == 1
    rows = np.ones((1, 900), np.float32) * 0.1
    codes, frames = snac.encode(rows, [900])
    other = (np.asarray(codes) + 1) % 32
    assert np.abs(snac.decode(codes, frames) - snac.decode(other, frames)).max() > 1e-4


def test_levels_stand_behind_the_folder(tmp_path):
    network = random_network(lambda: FrameCodecNetwork(FRAME_CODEC, rngs=nnx.Rngs(0)))
    save_codec(tmp_path, FRAME_CODEC, pure_params(network)[1])
    assert load_codec("codec", tmp_path).spec.levels == 3
    assert load_codec("codec", f"{tmp_path}@2").spec.levels == 2
    with pytest.raises(UserError, match="has 3 levels and needs 1; 4 were asked for"):
        load_codec("codec", f"{tmp_path}@4")
    with pytest.raises(UserError, match=r"no codec in .*@few"):
        load_codec("codec", f"{tmp_path}@few")
