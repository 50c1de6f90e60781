"""Small systems of every kind of trunk, embedding and head, over records of made-up ids."""

from types import SimpleNamespace

import numpy as np

from slm_jax.layouts import (
    Ctc,
    Delay,
    Inter,
    Layout,
    Nar,
    Par,
    Seq,
    States,
    Stream,
    Stretch,
    Thinned,
    Token,
    Typed,
    Vectors,
)
from slm_jax.models.backbone import BackboneConfig
from slm_jax.models.continuous import ContinuousConfig
from slm_jax.models.cross_decoder import CrossDecoderConfig
from slm_jax.models.depth import DepthConfig
from slm_jax.models.grid_config import BranchConfig, GridLMConfig
from slm_jax.models.grid_embedding import EmbeddingConfig
from slm_jax.models.second import SecondConfig
from slm_jax.models.system import System

LETTERS, CODES, LEVELS = 9, 8, 3
WIDTH = 4  # of vectors


def record(seed, letters=4, frames=7):
    """Text, units, codes and vectors of one utterance."""
    rng = np.random.default_rng(seed)

    def item(values, index=None):
        return SimpleNamespace(values=values, index=index)

    return {
        "text": item(rng.integers(0, LETTERS, (letters, 1)), np.arange(letters)),
        "units": item(rng.permutation(CODES)[:frames, None]),
        "codes": item(rng.integers(0, CODES, (frames, LEVELS))),
        "latents": item(rng.normal(size=(frames, WIDTH)).astype(np.float32)),
    }


def backbone(vocab=16, width=32, layers=2):
    return BackboneConfig(vocab, width, layers, 4, 2, 8, 48, tie_embeddings=True)


def depth(condition, **fields):
    return DepthConfig(
        width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, norm_eps=1e-5,
        condition=condition, **fields,
    )  # fmt: skip


def text(**fields):
    return Stream("text", (LETTERS,), **fields)


def codes(**fields):
    return Stream("codes", (CODES,) * LEVELS, **fields)


READ = Seq((Token(10, "BOS"), text(predicted=False), Token(11, "END")))
UPSTREAM = Layout("upstream", Seq((text(init=9, eos=10),)))
SPEAKER = Seq((Token(11, "SPK"), text(predicted=False), Token(12, "TEOS"), Token(13, "TPAD")))
CODEC = Seq((Token(10, "CPAD"), Token(11, "CBOS"), Stream("units", (CODES,), eos=12, pad=10)))
TURNS = Inter((text(predicted=False), Stream("units", (CODES,), offset=(20,))), (1, 2))
FEW = Stretch(text(predicted=False), 4)
PREFIXED = (
    text(predicted=False),
    Token(19, "BOS"),
    Stream("units", (CODES,), offset=(10,), eos=18),
)

SYSTEMS = {
    "parallel rows, mean": System(
        Layout("p", Par((text(eos=10, pad=11), Delay(codes(eos=8, pad=9), (1, 2, 3))))),
        GridLMConfig(backbone(), EmbeddingConfig("mean"), normalise="rows"),
    ),
    "gated rows": System(
        Layout("g", Par((text(eos=10, pad=11), Delay(codes(eos=8, pad=9), (1, 2, 3))))),
        GridLMConfig(backbone(), EmbeddingConfig("gated")),
    ),
    "depth, weights per step": System(
        Layout("d", Par((text(eos=10, pad=11), Delay(codes(eos=8, pad=9), (0, 1, 1))))),
        GridLMConfig(backbone(), depth=depth("previous", per_step=True), normalise="heads"),
    ),
    "depth in some columns": System(
        Layout("t", Typed((READ, Thinned(codes(eos=8), 0.5))), initial=False),
        GridLMConfig(
            backbone(), depth=depth("prefix", rope_theta=1e4, shared_tables=True),
            depth_share=0.5, normalise="heads",
        ),
    ),
    "depth of slices over concatenated rows": System(
        Layout("c", codes()),
        GridLMConfig(
            backbone(0, 48), EmbeddingConfig("concat", (1, 2, 3)), depth=depth("slice"),
            depth_from=0,
        ),
    ),
    "depth beside a label": System(
        Layout("s", Par((States(codes()), Stream("units", (CODES,), predicted=False)))),
        GridLMConfig(
            backbone(), EmbeddingConfig("mean", (1, 2, 3, -1, 4)), depth=depth("prefix"),
            depth_from=0, normalise="heads",
        ),
    ),
    "a prefix that sees itself": System(
        Layout("b", Seq(PREFIXED), initial=False), GridLMConfig(backbone(24), prefix=True)
    ),
    "tapped layers": System(
        Layout("k", Par((text(eos=10, pad=11), Delay(Stream("units", (8,), eos=10), (2,))))),
        GridLMConfig(
            backbone(), EmbeddingConfig("sum", (0, 0), scale=2**0.5),
            branch=BranchConfig(0, 1, (1,)),
        ),
    ),
    "second transformer, added": System(
        Layout("a", Par((SPEAKER, CODEC)), initial=False, upstream=UPSTREAM),
        GridLMConfig(backbone(16, 24), second=SecondConfig(backbone(0), "add", width=24)),
    ),
    "second transformer, gated": System(
        Layout("l", Seq((TURNS, Token(19, "EOS", 1.0))), upstream=UPSTREAM),
        GridLMConfig(
            backbone(16, 24), EmbeddingConfig(tables=(1,)),
            second=SecondConfig(backbone(0), "gated"),
        ),
    ),
    "second transformer, cross-attention": System(
        Layout("m", Delay(codes(init=8, pad=8), (0, 1, 2)), upstream=UPSTREAM),
        GridLMConfig(
            backbone(16, 24), EmbeddingConfig(tables=(1, 2, 3)),
            second=SecondConfig(CrossDecoderConfig(32, 2, 4, 48, 24), "cross", detach=True),
        ),
    ),
    "vectors predicted": System(
        Layout("v", Typed((READ, Vectors("latents", WIDTH, predicted=True))), initial=False),
        GridLMConfig(backbone(), continuous=ContinuousConfig("flow", WIDTH, inner=32, steps=4)),
    ),
    "vectors read": System(
        Layout("r", Par((text(eos=10, pad=11), Vectors("latents", WIDTH)))),
        GridLMConfig(backbone(), EmbeddingConfig(vectors="add")),
    ),
    "one level at a time": System(
        Layout("n", Typed((text(predicted=False), Nar(codes()))), initial=False, shift=0),
        GridLMConfig(backbone()),
    ),
    "CTC": System(
        Layout("x", Ctc(FEW, Stream("units", (CODES,))), False, 0, UPSTREAM),
        GridLMConfig(
            backbone(16, 24), EmbeddingConfig(tables=(1, -1)),
            second=SecondConfig(backbone(0), "replace", slices=2),
        ),
    ),
}  # fmt: skip
ONE_BY_ONE = [
    name for name, system in SYSTEMS.items() if system.layout.shift and not system.model.prefix
]
