"""Losses: against plain formulas, and free of padding and masking defects."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.models.heads import Latent
from slm_jax.models.speech_lm import Outputs, SpeechLM, SpeechLMConfig, set_codebooks
from slm_jax.nn import losses as nn_losses
from slm_jax.nn.losses import cross_entropy
from slm_jax.nn.tree import merge, pure_params
from slm_jax.training.losses import LossWeights, latent_loss, loss_weights, losses

BACKBONE = BackboneConfig(
    vocab_size=24, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)
CODES = (6, 6, 4)
CONFIG = SpeechLMConfig(CODES, BACKBONE, code_width=8)
CONTINUOUS = SpeechLMConfig((6, 6, 6), BACKBONE, code_width=8, head="continuous", latent_width=5)
REFERENCE = pure_params(Backbone(BACKBONE, nnx.Rngs(9)))


def train_batch(rng, columns=6, rows=2, codes=CODES):
    sizes = (24, *(size + 2 for size in codes))
    tokens = np.stack([rng.integers(0, size, (rows, columns)) for size in sizes], 1)
    batch = {
        "tokens": tokens.astype(np.int32),
        "positions": np.tile(np.arange(columns, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones((rows, columns), np.int32),
        "origins": np.zeros(tokens.shape, np.int32),
    }
    targets = [rng.integers(0, size, (rows, columns)) for size in (24, *codes)]
    batch["targets"] = np.stack(targets, 1).astype(np.int32)
    weights = rng.integers(0, 2, (rows, 1 + len(codes), columns)) * rng.uniform(
        0.5, 2, (rows, 1 + len(codes), columns)
    )
    weights[:, 0, 0] = weights[:, :, -1] = 1.0
    batch["weights"] = weights.astype(np.float32)
    return batch


def reference_logits(batch):
    backbone = merge(*REFERENCE)
    x = backbone.embed(batch["tokens"][:, 0])
    return backbone.logits(backbone(x, batch["positions"], batch["segment_ids"])[0])


def build(config):
    return pure_params(SpeechLM(config, nnx.Rngs(0)))


def objective(named, config):
    coefficients = LossWeights().coefficients(len(config.codebooks), config.head == "continuous")
    assert set(coefficients) == set(named)
    return sum(coefficients[name] * value / weight for name, (value, weight) in named.items())


@functools.cache
def network(config):
    graphdef, params = build(config)
    if config.head == "continuous":
        books = np.random.default_rng(8).normal(size=(3, 6, 5)).astype(np.float32)
        params = set_codebooks(params, books)
    run = jax.jit(lambda p, b: losses(merge(graphdef, p)(b), b, reference_logits(b)))
    grad = jax.jit(
        jax.grad(
            lambda p, b: objective(losses(merge(graphdef, p)(b), b, reference_logits(b)), config)
        )
    )
    return params, run, grad


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_losses_are_weighted_sums_of_the_plain_formulas():
    rng = np.random.default_rng(0)
    batch = train_batch(rng)
    text = rng.normal(size=(2, 6, 24)).astype(np.float32)
    speech = tuple(rng.normal(size=(2, 6, size)).astype(np.float32) for size in CODES)
    reference = rng.normal(size=(2, 6, 24)).astype(np.float32)
    named = losses(Outputs(text, speech, jnp.zeros(()), None), batch, reference)
    assert list(named) == ["text", "speech/0", "speech/1", "speech/2", "kl"]
    for row, logits in enumerate((text, *speech)):
        picked = np.take_along_axis(log_softmax(logits), batch["targets"][:, row, :, None], -1)
        value, weight = named[("text", "speech/0", "speech/1", "speech/2")[row]]
        expected = -(picked[..., 0] * batch["weights"][:, row]).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(weight, batch["weights"][:, row].sum(), rtol=1e-6)
    p, q = log_softmax(reference), log_softmax(text)
    kl = (np.exp(p) * (p - q)).sum(-1)
    np.testing.assert_allclose(named["kl"][0], (kl * batch["weights"][:, 0]).sum(), rtol=1e-5)
    same = losses(Outputs(text, speech, jnp.zeros(()), None), batch, text)["kl"][0]
    np.testing.assert_allclose(same, 0, atol=1e-5)


def test_label_smoothing_and_z_loss_are_those_of_the_formulas():
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(size=(2, 5, 7)) * 3, rng.integers(0, 7, (2, 5))
    shares = np.full((2, 5, 7), 0.1 / 7)
    np.put_along_axis(shares, targets[..., None], 0.9 + 0.1 / 7, -1)
    log_z = np.log(np.exp(logits).sum(-1))
    want = -(shares * log_softmax(logits)).sum(-1) + 0.01 * log_z**2
    loss = LossWeights(label_smoothing=0.1, z_loss=0.01).token_loss
    got = loss(jnp.asarray(logits), jnp.asarray(targets), jnp.ones((2, 5)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    nothing = {"text": 0.0, "speech": 0.0, "kl": 0.0}
    for bad in ({"label_smoothing": 1.0}, {"z_loss": -1.0}, nothing):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LossWeights(**bad)


def test_what_a_tpu_computes_is_the_same(monkeypatch):
    """By comparison, as `attention` chooses another backend there."""
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.bfloat16)
    targets = jnp.asarray(rng.integers(0, 7, (2, 5))).at[0, 0].set(7)  # has no weight
    weights = jnp.ones((2, 5)).at[0, 0].set(0.0)

    def loss(logits):
        return (cross_entropy(logits, targets, weights, 0.1, 0.01) * weights).sum()

    here = jax.value_and_grad(loss)(logits)
    monkeypatch.setattr(nn_losses, "platform", lambda: "tpu")
    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(logits))
    assert "gather" not in jaxpr and "scatter" not in jaxpr
    jax.tree.map(np.testing.assert_array_equal, jax.value_and_grad(loss)(logits), here)


def test_latent_loss_is_the_expectation_of_the_sampled_one():
    rng = np.random.default_rng(1)
    mean, logvar = rng.normal(size=(1, 4, 5)), rng.normal(size=(1, 4, 5)) * 0.3
    books = rng.normal(size=(3, 6, 5))
    codes = rng.integers(0, 6, (1, 3, 4))
    target = sum(books[k][codes[:, k]] for k in range(3))
    std = np.exp(0.5 * logvar)
    z = mean + std * rng.normal(size=(200_000, 1, 4, 5))
    kl = 0.5 * (np.exp(logvar) + (mean - target) ** 2 - 1 - logvar).mean(-1)
    sampled = 0.5 * ((z - target) ** 2).mean((0, -1)) + 0.5 * kl
    latent = Latent(*(jnp.asarray(x, jnp.float32) for x in (mean, logvar, books)))
    np.testing.assert_allclose(latent_loss(latent, codes, np.ones((1, 4))), sampled, rtol=1e-2)


@pytest.mark.parametrize("config", [CONFIG, CONTINUOUS])
def test_padding_changes_nothing(config):
    """The published SLM counts padding as a target (TASTE-SpokenLM, text_labels)."""
    params, run, grad = network(config)
    rng = np.random.default_rng(2)
    batch = train_batch(rng, codes=config.codebooks)
    pad = {name: [(0, 0)] * (value.ndim - 1) + [(0, 4)] for name, value in batch.items()}
    padded = {name: np.pad(value, pad[name]) for name, value in batch.items()}
    other = dict(padded)
    other["tokens"], other["targets"] = padded["tokens"].copy(), padded["targets"].copy()
    other["tokens"][..., -4:] = 3
    other["targets"][..., -4:] = [[5], [7], [6], [9]]  # INIT and PAD ids, beyond the classes
    plain = run(params, batch)
    gradient = grad(params, batch)
    for variant in (padded, other):
        for name, (value, weight) in run(params, variant).items():
            np.testing.assert_allclose(value, plain[name][0], rtol=1e-4)
            np.testing.assert_allclose(weight, plain[name][1], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            grad(params, variant), gradient,
        )  # fmt: skip


def test_packed_rows_count_as_the_segments_alone():
    params, run, _ = network(CONFIG)
    batch = train_batch(np.random.default_rng(3), columns=6, rows=2)
    packed = {name: np.concatenate([value[:1], value[1:]], -1) for name, value in batch.items()}
    packed["segment_ids"] = np.repeat([[1, 2]], 6, 1).astype(np.int32)
    alone = run(params, batch)
    for name, (value, weight) in run(params, packed).items():
        np.testing.assert_allclose(value, alone[name][0], rtol=1e-4)
        np.testing.assert_allclose(weight, alone[name][1], rtol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, CONTINUOUS])
def test_positions_without_weight_have_no_gradient(config):
    rng = np.random.default_rng(4)
    batch = train_batch(rng, codes=config.codebooks)
    if config.head == "continuous":
        batch["weights"][:, 1:] = batch["weights"][:, 1:2]
    params, _, _ = network(config)
    graphdef = build(config)[0]
    outputs = jax.jit(lambda p, b: merge(graphdef, p)(b))(params, batch)
    reference = reference_logits(batch)

    def loss(text, speech, latent):
        changed = outputs._replace(text_logits=text, speech_logits=speech, latent=latent)
        return objective(losses(changed, batch, reference), config)

    text, speech, latent = jax.grad(loss, argnums=(0, 1, 2))(
        outputs.text_logits, outputs.speech_logits, outputs.latent
    )
    rows = [text, *speech] if latent is None else [text, latent.mean]
    for row, gradient in enumerate(rows):
        on = batch["weights"][:, row] > 0
        assert 0 < on.sum() < on.size
        assert (np.abs(gradient).max(-1) > 0)[on].all()
        assert (np.asarray(gradient)[~on] == 0).all()


def test_weights_are_known_before_the_forward():
    for config in (CONFIG, CONTINUOUS):
        params, run, _ = network(config)
        batch = train_batch(np.random.default_rng(5), codes=config.codebooks)
        named = run(params, batch)
        known = loss_weights(batch, config.head == "continuous", True)
        assert set(known) == set(named)
        for name, (_, weight) in named.items():
            np.testing.assert_allclose(known[name], weight, rtol=1e-6)


def test_microbatches_add_up_to_the_batch():
    params, run, _ = network(CONFIG)
    batch = train_batch(np.random.default_rng(6), rows=4)
    halves = [run(params, {k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2)]
    for name, pair in run(params, batch).items():
        np.testing.assert_allclose(np.add(halves[0][name], halves[1][name]), pair, rtol=1e-5)


def test_coefficients_share_speech_among_levels():
    weights = LossWeights(text=1, speech=0.5, kl=0, levels=(3, 1))
    assert weights.coefficients(2, False) == {"text": 1, "speech/0": 0.375, "speech/1": 0.125}
    assert weights.coefficients(2, True) == {"text": 1, "latent": 0.5}
    assert LossWeights().coefficients(5, False)["speech/4"] == pytest.approx(0.1)
    assert LossWeights().coefficients(5, False)["kl"] == 0.45
    with pytest.raises(ValueError, match="levels"):
        weights.coefficients(3, False)
    with pytest.raises(ValueError, match="kl"):
        LossWeights(kl=-1)


def test_training_learns_a_copied_word():
    """The whole objective falls when the model is trained on one batch."""
    params, _, grad = network(CONFIG)
    graphdef = build(CONFIG)[0]
    batch = train_batch(np.random.default_rng(7))
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grad(params, batch), state)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), losses(merge(graphdef, params)(batch), batch)
    for _ in range(40):
        params, state = step(params, state)
    after = losses(merge(graphdef, params)(batch), batch)
    for name in ("text", "speech/0", "speech/1", "speech/2"):
        assert after[name][0] < 0.6 * before[name][0], name
