"""SpeechLM: fusion, heads, cache, parameter groups, weights of a text LLM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.models.heads import requantise
from slm_jax.models.speech_lm import (
    SpeechLM,
    SpeechLMConfig,
    init_from_llm,
    set_codebooks,
    trainable,
    without_lora,
)
from slm_jax.nn.tree import flatten, logical_axes, merge, pure_params, unflatten

BACKBONE = BackboneConfig(
    vocab_size=24, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)
CODES = (6, 6, 4)
CONFIG = SpeechLMConfig(CODES, BACKBONE, code_width=8)
WORDS = dataclasses.replace(CONFIG, head="word_tokens")
CONTINUOUS = SpeechLMConfig(
    (6, 6, 6), BACKBONE, code_width=8, head="continuous", latent_width=5, logvar="linear"
)


def build(config):
    return pure_params(SpeechLM(config, nnx.Rngs(0)))


def make_batch(rng, columns=7, rows=2, codes=CODES):
    sizes = (BACKBONE.vocab_size, *(size + 2 for size in codes))
    tokens = np.stack([rng.integers(0, size, (rows, columns)) for size in sizes], 1)
    positions = np.tile(np.arange(columns, dtype=np.int32), (rows, 1))
    return {
        "tokens": tokens.astype(np.int32),
        "positions": positions,
        "origins": rng.integers(0, positions[:, None] + 1, tokens.shape, np.int32),
        "segment_ids": np.ones((rows, columns), np.int32),
    }


def forward(graphdef, params, batch):
    return jax.jit(lambda p, b: merge(graphdef, p)(b))(params, batch)


@pytest.mark.parametrize("config", [CONFIG, WORDS, CONTINUOUS])
def test_cached_steps_equal_the_full_forward(config):
    rng = np.random.default_rng(0)
    graphdef, params = build(config)
    if config.head == "continuous":
        params = set_codebooks(params, rng.normal(size=(3, 6, 5)).astype(np.float32))
    batch = make_batch(rng, codes=config.codebooks)
    full = forward(graphdef, params, batch)
    assert full.text_logits.shape == (2, 7, 24)
    assert [x.shape for x in full.speech_logits] == [(2, 7, size) for size in config.codebooks]
    assert (full.latent is None) == (config.head != "continuous")

    @jax.jit
    def step(params, *inputs):
        return merge(graphdef, params).step(*inputs)

    cache = merge(graphdef, params).init_cache(2, 8)
    tokens, positions, origins = batch["tokens"], batch["positions"], batch["origins"]
    parts = []
    for columns in (slice(4), slice(4, 5), slice(5, 6), slice(6, 7)):  # the prompt at once
        here = tokens[..., columns], positions[:, columns], origins[..., columns]
        out, cache = step(params, *here, cache)
        parts.append(out)
    ends = np.array([6, 2])
    chosen = np.take_along_axis(origins, ends[:, None, None], axis=2)
    last, _ = step(params, tokens, positions, chosen, cache, ends)
    np.testing.assert_allclose(last.text_logits[0], full.text_logits[0, 6:], atol=1e-5)
    np.testing.assert_allclose(last.text_logits[1], full.text_logits[1, 2:3], atol=1e-5)
    for level, logits in enumerate(full.speech_logits):
        np.testing.assert_allclose(last.speech_logits[level][1], logits[1, 2:3], atol=1e-5)
    text = jnp.concatenate([part.text_logits for part in parts], 1)
    np.testing.assert_allclose(text, full.text_logits, atol=1e-5)
    for level, logits in enumerate(full.speech_logits):
        stepped = jnp.concatenate([part.speech_logits[level] for part in parts], 1)
        np.testing.assert_allclose(stepped, logits, atol=1e-5)


def test_speech_starts_at_its_share_and_can_be_switched_off():
    graphdef, params = build(CONFIG)
    model = merge(graphdef, params)
    np.testing.assert_allclose(model.fusion.weights(), [0.982, 0.018], atol=1e-3)
    batch = make_batch(np.random.default_rng(1))
    plain = model.text_logits(batch)
    assert np.abs(model(batch).text_logits - plain).max() > 1e-4
    off = params | {"fusion": {"scalars": jnp.array([0.0, -jnp.inf])}}
    np.testing.assert_allclose(forward(graphdef, off, batch).text_logits, plain, atol=1e-6)


def test_backbone_weights_of_a_text_llm_give_its_logits():
    config = dataclasses.replace(CONFIG, backbone=dataclasses.replace(BACKBONE, lora_rank=2))
    graphdef, params = build(config)
    llm_graph, llm = pure_params(Backbone(BACKBONE, nnx.Rngs(7)))
    loaded = init_from_llm(params, llm)
    batch = make_batch(np.random.default_rng(2))
    backbone = merge(llm_graph, llm)
    x = backbone.embed(batch["tokens"][:, 0])
    expected = backbone.logits(backbone(x, batch["positions"], batch["segment_ids"])[0])
    off = loaded | {"fusion": {"scalars": jnp.array([0.0, -jnp.inf])}}
    np.testing.assert_allclose(forward(graphdef, off, batch).text_logits, expected, atol=1e-6)
    # All else is as it was initialised, and the model given is as it was.
    changed = {k for k, v in flatten(loaded).items() if v is not flatten(params)[k]}
    assert changed == {f"backbone/{name}" for name in flatten(llm)}
    # With trained low-rank updates the reference is the same LLM again.
    trained = jax.tree.map(lambda x: x, loaded)
    trained["backbone"]["layers"]["attention"]["q"]["lora_b"] += 1.0
    moved = merge(graphdef, trained).text_logits(batch)
    assert np.abs(moved - expected).max() > 1e-3
    reference = merge(graphdef, without_lora(trained)).text_logits(batch)
    np.testing.assert_allclose(reference, expected, atol=1e-6)


def test_weights_of_another_llm_are_named():
    _, params = build(CONFIG)
    _, llm = pure_params(Backbone(dataclasses.replace(BACKBONE, mlp_width=16), nnx.Rngs(0)))
    with pytest.raises(UserError, match="misshapen: layers/mlp/down/kernel"):
        init_from_llm(params, llm)
    del llm["norm"]
    with pytest.raises(UserError, match="missing: norm/scale"):
        init_from_llm(params, llm)


def test_word_heads_read_all_layers_at_the_columns_they_are_sent_to():
    graphdef, params = build(WORDS)
    batch = make_batch(np.random.default_rng(5), rows=1)
    before = forward(graphdef, params, batch)
    sent = batch | {"origins": batch["origins"].copy()}
    sent["origins"][0, 2, 6] = (batch["origins"][0, 2, 6] + 1) % 7  # level 1 at column 6
    after = forward(graphdef, params, sent)
    for level in range(3):
        moved = np.abs(after.speech_logits[level] - before.speech_logits[level])[0].max(-1) > 1e-6
        assert np.flatnonzero(moved).tolist() == ([6] if level == 1 else [])
    np.testing.assert_array_equal(after.text_logits, before.text_logits)
    # By hand: equal shares of every layer's state, each of unit size.
    model = merge(graphdef, params)
    tokens, layers = batch["tokens"], flatten(params["backbone"]["layers"])
    x = model.fusion(model.backbone.embed(tokens[:, 0]), model.codes(tokens[:, 1:]))
    states = [x]
    for depth in range(1, BACKBONE.layers + 1):
        shallow = Backbone(dataclasses.replace(BACKBONE, layers=depth), nnx.Rngs(0))
        cut = unflatten({name: value[:depth] for name, value in layers.items()})
        backbone = merge(pure_params(shallow)[0], params["backbone"] | {"layers": cut})
        backbone.norm = lambda state: state
        states.append(backbone(x, batch["positions"], batch["segment_ids"])[0])
    mixed = sum(state / np.sqrt((state**2).mean(-1, keepdims=True)) for state in states) / 3
    heads, origin = model.heads, int(batch["origins"][0, 3, 4])
    states = heads.norm(mixed[0, origin]), heads.norm(before.hidden[0, 4])
    of_word, of_column = heads.fusion.weights()
    state = of_word * states[0] + of_column * states[1]
    logits = heads.levels.linears[2](heads.levels.norms[2](state))
    np.testing.assert_allclose(before.speech_logits[2][0, 4], logits, atol=1e-5)


def test_packed_segments_do_not_see_each_other_nor_padding():
    graphdef, params = build(CONFIG)
    rng = np.random.default_rng(3)
    batch = make_batch(rng, columns=9, rows=1)
    batch["segment_ids"] = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    batch["positions"] = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]], np.int32)
    packed = forward(graphdef, params, batch)
    for start, stop in ((0, 4), (4, 7)):
        alone = forward(graphdef, params, {
            "tokens": batch["tokens"][:, :, start:stop],
            "positions": batch["positions"][:, start:stop],
            "origins": batch["origins"][:, :, start:stop],
            "segment_ids": np.ones((1, stop - start), np.int32),
        })  # fmt: skip
        np.testing.assert_allclose(packed.text_logits[:, start:stop], alone.text_logits, atol=1e-5)
        for both, one in zip(packed.speech_logits, alone.speech_logits, strict=True):
            np.testing.assert_allclose(both[:, start:stop], one, atol=1e-5)


def test_parameter_groups():
    lora = dataclasses.replace(CONTINUOUS, backbone=dataclasses.replace(BACKBONE, lora_rank=2))
    graphdef, params = build(lora)
    full, low = (flatten(trainable(params, mode)) for mode in ("full", "lora"))
    assert [name for name, on in full.items() if not on] == ["heads/codebooks"]
    assert all(on == ("lora" in name) for name, on in low.items() if name.startswith("backbone/"))
    others = {name for name in low if not name.startswith("backbone/")}
    assert {name for name in others if not low[name]} == {"heads/codebooks"}
    assert any(name.startswith("fusion/") for name in others)
    axes = flatten(logical_axes(merge(graphdef, params)))
    for name, value in flatten(params).items():
        assert len(axes[name]) == value.ndim


def test_requantising_a_sum_of_codes_is_greedy_residual_search():
    rng = np.random.default_rng(4)
    books = rng.normal(size=(3, 6, 5)).astype(np.float32) * np.array([4, 1, 0.2])[:, None, None]
    latent = rng.normal(size=(10, 5)).astype(np.float32)
    scores = requantise(jnp.asarray(latent), jnp.asarray(books))
    for row in range(10):
        rest = latent[row]
        for level, table in enumerate(books):
            best = int(((rest - table) ** 2).sum(-1).argmin())
            assert scores[level][row].argmax() == best
            rest = rest - table[best]


def layout(by=(1, 2, 3), codes=CODES, vocab=24):
    speech = Delay(Stream("taste", codes), by, clock="word")
    return Layout("taste", Par((Text("text", vocab, 1, 2), speech)))


def test_model_and_layout_must_agree():
    CONFIG.check(layout())
    with pytest.raises(UserError, match="codebooks"):
        CONFIG.check(layout(codes=(6, 6, 6)))
    with pytest.raises(UserError, match="25 text ids"):
        CONFIG.check(layout(vocab=25))
    with pytest.raises(UserError, match="all levels at once"):
        CONTINUOUS.check(layout(codes=(6, 6, 6)))
    CONTINUOUS.check(layout((1, 1, 1), codes=(6, 6, 6)))
    with pytest.raises(UserError, match="no Text row"):
        CONFIG.check(Layout("frames", Stream("taste", CODES)))


def test_codebooks_of_another_tokenizer_are_refused():
    with pytest.raises(UserError, match="head = 'tokens'"):
        set_codebooks(build(CONFIG)[1], np.zeros((3, 6, 5), np.float32))
    with pytest.raises(UserError, match="codebooks"):
        set_codebooks(build(CONTINUOUS)[1], np.zeros((3, 6, 4), np.float32))
