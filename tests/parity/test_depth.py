"""Our depth transformer against moshi's, CSM's, and the equations of those without a package."""

from __future__ import annotations

import functools
import importlib
import re

import jax
import moshi_package
import numpy as np
import pytest
from flax import nnx

from slm_jax.interop import csm, grid_weights, moshi
from slm_jax.models.depth import DepthConfig, DepthTransformer
from slm_jax.nn import tree
from slm_jax.nn.rope import RopeScaling

torch = pytest.importorskip("torch")
F = torch.nn.functional
SEEDS = (0, 1, 2)


def abstract(config, width, previous, classes):
    return nnx.eval_shape(lambda: DepthTransformer(config, width, previous, classes, nnx.Rngs(0)))


def loaded(table, tensors, model):
    """The parameters of `model` (abstract) from published tensors; every one must be used."""
    return grid_weights.load(list(table), tensors, tree.pure_params(model)[1], "float32")


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, hidden, previous):
    """Logits of the teacher-forced pass, and of the steps one by one."""
    model = tree.merge(graphdef, params)
    cache, steps = model.init_cache(hidden.shape[0]), []
    for k in range(previous.shape[1]):
        logits, cache = model.step(k, hidden, previous[:, k], cache)
        steps.append(logits)
    return model(hidden, previous), tuple(steps)


def assert_equal(got, want):
    """Tuples of [N, V] within 1e-4, on logits that are not all near one another."""
    for passed in got:
        for a, b in zip(passed, want, strict=True):
            assert 0.3 < b.std() < 30
            np.testing.assert_allclose(a, b, atol=1e-4)


def arrays(state) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state.items()}


def randomised(module, seed):
    """Random weights of a scale at which attention and gating are far from linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            table = re.search(r"emb\.|embed_tokens", name)
            scale = 1.0 if table else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if "norm" in name:
                weight.abs_().add_(0.5)
    return module.eval()


MOSHI = {
    "delays": [0] * 7, "n_q": 6, "dep_q": 4, "card": 24, "text_card": 40, "dim": 32,
    "num_heads": 4, "num_layers": 1, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "context": 20, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 16, "depformer_dim_feedforward": 66,
    "depformer_num_heads": 4, "depformer_num_layers": 2, "depformer_layer_scale": None,
    "depformer_context": 4, "depformer_max_period": 10000, "depformer_gating": "silu",
}  # fmt: skip
MOSHI_PER_STEP = {
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}
MOSHI_SHARED = {"depformer_pos_emb": "rope_concat", "kv_repeat": 2}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["per_step", "shared"])
def test_moshi(kind, seed):
    """The published form, and one with shared weights, rotary positions and grouped queries."""
    moshi_package.make_importable()
    lm = importlib.import_module("moshi.models.lm")
    per_step = kind == "per_step"
    theirs = randomised(lm.LMModel(**MOSHI, **(MOSHI_PER_STEP if per_step else MOSHI_SHARED)), seed)
    rows, columns = MOSHI["dep_q"], 5
    config = DepthConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=4 if per_step else 2,
        head_dim=4,
        mlp_width=44,
        norm_eps=1e-8,
        condition="previous",
        per_step=per_step,
        rope_theta=0.0 if per_step else 10_000.0,
        final_norm=False,
    )
    model = abstract(config, 32, (41, *[25] * (rows - 1)), (24,) * rows)
    own = re.compile(r"depformer|linears\.")
    tensors = {n: t for n, t in arrays(theirs.state_dict()).items() if own.match(n)}
    params = loaded(moshi.depth_table(config, rows), moshi.divided(tensors, rows), model)

    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 25, (2, 7, columns), generator=generator)
    codes[:, 0] = torch.randint(0, 41, (2, columns), generator=generator)
    codes[0, :2, 1], codes[1, 3, 2] = -1, -1  # empty cells
    hidden = torch.randn(2, columns, 32, generator=generator)
    with torch.no_grad():
        want = theirs.forward_depformer_training(codes, hidden)  # [B, K, T, V]
        if per_step:  # LMGen's way: a column at a time, its rows one by one
            for t in range(columns):
                with theirs.depformer.streaming(2):
                    for k in range(rows):
                        row = theirs.forward_depformer(k, codes[:, k : k + 1, t : t + 1],
                                                       hidden[:, t : t + 1])  # fmt: skip
                        np.testing.assert_allclose(row[:, 0, 0], want[:, k, t], atol=1e-4)
    previous = codes[:, :rows].permute(0, 2, 1).reshape(-1, rows).numpy()
    got = run(tree.pure_params(model)[0], params, hidden.reshape(-1, 32).numpy(), previous)
    assert_equal(got, [want[:, k].reshape(2 * columns, -1).numpy() for k in range(rows)])


@pytest.mark.parametrize("seed", SEEDS)
def test_csm(seed):
    transformers = pytest.importorskip("transformers")
    codebooks, vocab, width = 5, 20, 24
    rope = {"factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0}
    theirs_config = transformers.CsmDepthDecoderConfig(
        num_codebooks=codebooks,
        backbone_hidden_size=width,
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "original_max_position_embeddings": 16,
            **rope,
        },
        attn_implementation="sdpa",
    )
    theirs = randomised(transformers.CsmDepthDecoderForCausalLM(theirs_config), seed)
    config = DepthConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=28,
        condition="prefix",
        rope_theta=100.0,
        rope_scaling=RopeScaling("llama3", 4.0, 0.5, 2.0, 16),  # kept, blended and stretched waves
        shared_tables=True,
    )
    rows = codebooks - 1  # c1..c4, each after the one before: c0 is the backbone's
    model = abstract(config, width, (vocab,) * rows, (vocab,) * rows)
    heads = arrays(theirs.state_dict())  # the table in it is the backbone's
    heads |= {f"codebooks_head.{k}": x.T for k, x in enumerate(heads.pop("codebooks_head.weight"))}
    del heads["model.embed_tokens.weight"]
    params = loaded(csm.depth_table(rows, vocab, vocab), heads, model)

    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, vocab, (6, rows), generator=generator)
    hidden = torch.randn(6, width, generator=generator)
    with torch.no_grad():
        ids = torch.cat([torch.zeros(6, 1, dtype=torch.long), codes], 1)  # hidden's place first
        want = theirs(input_ids=ids, backbone_last_hidden_state=hidden).logits  # [N, K, V]
        vectors = theirs.model.embed_tokens(codes + vocab * torch.arange(rows))
    got = run(tree.pure_params(model)[0], params, hidden.numpy(), vectors.numpy())
    assert_equal(got, want.transpose(0, 1).numpy())


# Voila's AudioTransformer predicts its first row from hidden itself; Baichuan-Omni-1.5's
# OmniAudioHead does too and then reads running sums; UniAudio's MegaByteModel slices hidden and
# begins after a start id. Their blocks differ; what is checked is what the steps read.


def sequence(condition, hidden, vectors, kernel):
    """[N, D], vectors of the rows before each row [N, K, W], [D or D/K, W] -> [N, K, W]."""
    if condition == "slice":
        return hidden.view(hidden.shape[0], vectors.shape[1], -1) @ kernel + vectors
    after = vectors[:, 1:]
    if condition == "cumsum":
        after = torch.cumsum(after, dim=1)
    return torch.cat([(hidden @ kernel)[:, None], after], dim=1)


def plain(config, params, hidden, previous):
    """The equations in float64, layer by layer."""
    w = {k: torch.from_numpy(v).double() for k, v in tree.flatten(params).items()}
    skip = 0 if config.condition == "slice" else 1  # rows without one before: no table
    tables = [w[f"tables/{k}/embedding"] for k in range(previous.shape[1] - skip)]
    vectors = [table[ids] for table, ids in zip(tables, previous.T[skip:], strict=True)]
    vectors = torch.stack([torch.zeros_like(vectors[0])] * skip + vectors, dim=1)
    x = sequence(config.condition, hidden.double(), vectors, w["input/kernel"])

    def norm(x, scale):
        return F.rms_norm(x, (config.width,), scale, config.norm_eps)

    def heads(x, kernel):
        return (x @ kernel).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)

    for i in range(config.layers):
        p = {k.removeprefix("layers/"): v[i] for k, v in w.items() if k.startswith("layers/")}
        y = norm(x, p["attention_norm/scale"])
        q, k, v = (heads(y, p[f"{name}/kernel"]) for name in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).flatten(2) @ p["o/kernel"]
        y = norm(x, p["mlp_norm/scale"])
        x = x + (F.silu(y @ p["gate/kernel"]) * (y @ p["up/kernel"])) @ p["down/kernel"]
    x = norm(x, w["norm/scale"])
    return [(x[:, k] @ w[f"heads/{k}/kernel"]).numpy() for k in range(previous.shape[1])]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("condition", ["prefix", "cumsum", "slice"])
def test_equations(condition, seed):
    config = DepthConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=20,
        condition=condition,
    )
    first = 30 if condition == "slice" else 0
    previous, classes = (first, 12, 9, 15), (12, 9, 15, 8)
    model = abstract(config, 24, previous, classes)
    rng = np.random.default_rng(seed)
    graphdef, shapes = tree.pure_params(model)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(p.dtype), shapes)
    ids = np.stack([rng.integers(0, max(v, 1), 6) for v in previous], axis=1)
    hidden = rng.normal(size=(6, 24)).astype(np.float32)
    want = plain(config, params, torch.from_numpy(hidden), torch.from_numpy(ids))
    assert_equal(run(graphdef, params, hidden, ids), want)
