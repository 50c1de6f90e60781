"""Codecs of a few thousand random weights, for tests that need no reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.nn.quantizers import RvqConfig
from slm_jax.nn.tree import flatten, merge, pure_params, unflatten
from slm_jax.tokenizers.codecs.dac import Dac, DacConfig, DacNetwork
from slm_jax.tokenizers.codecs.encodec import Encodec, EncodecConfig, EncodecNetwork
from slm_jax.tokenizers.codecs.encodec_chunked import (
    ChunkedConfig,
    ChunkedNetwork,
    EncodecChunked,
)
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec, FrameCodecConfig, FrameCodecNetwork
from slm_jax.tokenizers.codecs.mimi import Mimi, MimiConfig, MimiNetwork
from slm_jax.tokenizers.codecs.seanet import SeanetConfig
from slm_jax.tokenizers.codecs.snac import Snac, SnacConfig, SnacNetwork

FRAME_CODEC = FrameCodecConfig(
    hop=320,
    width=16,
    mlp=24,
    encoder_layers=1,
    decoder_layers=1,
    rvq=RvqConfig(levels=3, codes=32, width=8),
)


def random_network(make, seed=0):
    """The module that `make` makes, with biases and codebooks at random, too: silence and padding
    are not the same then. What adds up is quiet, so that rounding errors stay small."""
    rng = np.random.default_rng(seed)
    graphdef, abstract = pure_params(nnx.eval_shape(make))
    weights = {}
    for name, array in flatten(abstract).items():
        drawn = rng.normal(size=array.shape).astype(np.float32)
        if name.endswith(("scale", "alpha")):
            drawn = 1 + 0.3 * np.abs(drawn)
        elif name.endswith("bias"):
            drawn *= 0.3
        elif "codebook" not in name:
            quiet = "units" in name or name.startswith("decoder/last")
            drawn *= (0.3 if quiet else 1.0) * np.prod(array.shape[:-1]) ** -0.5
        weights[name] = drawn
    return merge(graphdef, jax.tree.map(jnp.asarray, unflatten(weights)))


def frame_codec():
    return FrameCodec(random_network(lambda: FrameCodecNetwork(FRAME_CODEC, rngs=nnx.Rngs(0))), 3)


def dac(ratios=(2, 2, 2)):
    config = DacConfig(1200, 4, ratios, 32, levels=3, codes=32, code_width=4)
    return Dac(random_network(lambda: DacNetwork(config, rngs=nnx.Rngs(0))), 3)


def snac(**changes):
    sizes = {"filters": 16, "ratios": (2, 3), "decoder_ratios": (3, 2), "decoder_width": 128}
    config = SnacConfig(600, **sizes, codes=32, code_width=4, **changes)
    return Snac(random_network(lambda: SnacNetwork(config, rngs=nnx.Rngs(0))), 3)


def encodec_chunked():
    seanet = SeanetConfig(
        channels=2,
        width=8,
        filters=4,
        ratios=(4, 3),
        last_kernel=7,
        shortcut=True,
        pad_mode="reflect",
        causal=False,
        norm=True,
    )
    config = ChunkedConfig(1200, seanet, levels=2, codes=32, chunk=120, stride=108)
    return EncodecChunked(random_network(lambda: ChunkedNetwork(config, rngs=nnx.Rngs(0))), 2)


def encodec():
    seanet = SeanetConfig(
        width=8, filters=4, ratios=(4, 3), last_kernel=7, shortcut=True, pad_mode="reflect"
    )
    config = EncodecConfig(1200, seanet, levels=2, codes=32)
    return Encodec(random_network(lambda: EncodecNetwork(config, rngs=nnx.Rngs(0))), 2)


def mimi():
    config = MimiConfig(
        2400,
        SeanetConfig(width=16, filters=4, ratios=(4, 3)),
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=24,
        window=6,
        levels=3,
        codes=32,
        code_width=8,
    )
    return Mimi(random_network(lambda: MimiNetwork(config, rngs=nnx.Rngs(0))), 3)


# Each is made once a process, whichever tests ask for it, and keeps its compiled programs.
TINY_CODECS = {
    "codec": functools.cache(frame_codec),
    "mimi": functools.cache(mimi),
    "encodec": functools.cache(encodec),
    "encodec_48khz": functools.cache(encodec_chunked),
    "dac": functools.cache(dac),
    "dac_odd": functools.cache(lambda: dac((2, 3))),
    "snac": functools.cache(snac),
    "snac_attention": functools.cache(lambda: snac(window=6)),
}


def coarse(codec, levels):
    """The same codec, of which only the first levels are written."""
    return type(codec)(merge(codec._graphdef, codec._params), levels)
