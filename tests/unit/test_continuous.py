"""Continuous heads: their likelihoods and samplers against known answers, and two right answers."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special, stats

from slm_jax.models.continuous import SCALE_FLOOR, ContinuousConfig, cosine_schedule, make_head
from slm_jax.nn.tree import flatten, logical_axes, merge, pure_params
from slm_jax.paths import REPO

KINDS = ("regression", "mixture", "flow", "diffusion")
HIDDEN = 8
MEAN, DEVIATION = np.array([0.5, -1.0, 2.0]), np.array([0.3, 0.8, 1.5])


def tiny(kind, **changes):
    config = ContinuousConfig(kind, width=3, components=4, inner=16, depth=2, steps=4)
    return make_head(dataclasses.replace(config, **changes), HIDDEN, nnx.Rngs(0))


def woken(kind):
    """A head whose weights are all random: some start as zero."""
    graphdef, params = pure_params(tiny(kind))
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + 0.3 * normal(9, *leaf.shape) for leaf in leaves]
    return merge(graphdef, jax.tree.unflatten(tree, leaves))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_likelihood_of_a_mixture_is_scipys():
    head, hidden, targets = woken("mixture"), normal(0, 2, 5, HIDDEN), normal(1, 2, 5, 3)
    weights, means, scales = map(np.float64, head.mixture(hidden))
    losses = head.losses(hidden, targets, None)
    np.testing.assert_allclose(np.exp(weights).sum(-1), 1, rtol=1e-5)
    for row in np.ndindex(2, 5):
        of_each = [
            stats.multivariate_normal(mean, np.diag(scale**2)).logpdf(targets[row])
            for mean, scale in zip(means[row], scales[row], strict=True)
        ]
        wanted = -special.logsumexp(weights[row] + of_each) / 3
        assert losses[row] == pytest.approx(wanted, rel=1e-4)


def test_no_gaussian_is_narrower_than_the_floor_and_far_targets_stay_finite():
    graphdef, params = pure_params(tiny("mixture"))
    params["linear"]["bias"] = jnp.full_like(params["linear"]["bias"], -1e3)
    head = merge(graphdef, params)
    hidden = normal(0, 4, HIDDEN)
    _, means, scales = head.mixture(hidden)
    np.testing.assert_allclose(scales, SCALE_FLOOR)
    loss = head.losses(hidden, means[:, 0] + 100.0, None)
    assert np.isfinite(loss).all()
    assert (loss > 1e6).all()


def test_mixtures_are_drawn_by_weight_and_without_noise_at_temperature_nothing():
    head, hidden = woken("mixture"), jnp.broadcast_to(normal(0, 1, HIDDEN), (4000, HIDDEN))
    weights, means, scales = (each[0] for each in head.mixture(hidden))
    draws = head.sample(hidden, jax.random.key(1), temperature=0.0)
    distances = jnp.linalg.norm(draws[:, None] - means, axis=-1)
    assert distances.min(-1).max() < 1e-5
    shares = np.bincount(distances.argmin(-1), minlength=4) / len(draws)
    np.testing.assert_allclose(shares, np.exp(weights), atol=0.03)
    draws = head.sample(hidden, jax.random.key(1))
    mean = np.exp(weights) @ means
    variance = np.exp(weights) @ (scales**2 + (means - mean) ** 2)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(draws.std(0), np.sqrt(variance), rtol=0.1)


class Exact(nnx.Module):
    """What a flow or diffusion network would learn of a Gaussian, times a factor."""

    def __init__(self, kind, factor=1.0):
        self.kind, self.factor = kind, factor

    def read(self, hidden):
        return hidden

    def __call__(self, x, t, state):
        if self.kind == "flow":
            t = t[:, None]
            signal, noise = t, 1 - (1 - 1e-4) * t
        else:
            signal, noise = cosine_schedule(jnp.asarray(t)[..., None])
        # By Bayes: x = signal * data + noise * eps, both Gaussian.
        variance = signal**2 * DEVIATION**2 + noise**2
        away = x - signal * MEAN
        data = MEAN + signal * DEVIATION**2 / variance * away
        eps = noise / variance * away
        return self.factor * (data - eps if self.kind == "flow" else eps)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_sampler_with_the_exact_network_draws_the_gaussian(kind):
    head = tiny(kind, steps=100)
    head.network = Exact(kind)
    draws = jax.jit(head.sample)(jnp.zeros((2, 4000, HIDDEN)), jax.random.key(0))
    assert draws.shape == (2, 4000, 3)
    np.testing.assert_allclose(draws.mean((0, 1)), MEAN, atol=0.06)
    np.testing.assert_allclose(draws.std((0, 1)), DEVIATION, rtol=0.08)
    cold = jax.jit(head.sample)(jnp.zeros((1000, HIDDEN)), jax.random.key(0), 0.3)
    assert (cold.std(0) < 0.8 * DEVIATION).all()


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_exact_network_has_the_least_loss(kind):
    head, losses = tiny(kind), {}
    targets = MEAN + DEVIATION * normal(3, 4000, 3)
    for factor in (0.8, 1.0, 1.2):
        head.network = Exact(kind, factor)
        losses[factor] = head.losses(targets, targets, jax.random.key(0)).mean()
    assert losses[1.0] < min(losses[0.8], losses[1.2])


def test_the_cosine_schedule_goes_from_data_to_noise():
    t = jnp.linspace(0, 1, 1001)
    alpha, sigma = cosine_schedule(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    assert (np.diff(alpha) < 0).all()
    assert alpha[0] == pytest.approx(1) and sigma[0] == 0
    assert abs(alpha[-1]) < 1e-6
    half = np.cos(np.pi / 2 * 0.508 / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008)
    assert alpha[500] == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_at_extreme_states(kind):
    graphdef, params = pure_params(woken(kind))
    targets, key = 50 * normal(1, 6, 3), jax.random.key(2)

    @jax.jit
    @jax.value_and_grad
    def loss(inputs):
        params, hidden = inputs
        return merge(graphdef, params).losses(hidden, targets, key).mean()

    for size in (0.0, 1e-6, 1e6):
        value, grads = loss((params, size * normal(0, 6, HIDDEN)))
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_settles_the_draw_and_bfloat16_states_give_float32(kind):
    head, hidden = woken(kind), normal(0, 2, 3, HIDDEN).astype(jnp.bfloat16)
    sample = jax.jit(head.sample)
    draws = sample(hidden, jax.random.key(0))
    assert draws.shape == (2, 3, 3) and draws.dtype == jnp.float32
    np.testing.assert_array_equal(draws, sample(hidden, jax.random.key(0)))
    assert np.array_equal(draws, sample(hidden, jax.random.key(1))) == (kind == "regression")
    losses = jax.jit(head.losses)(hidden, draws, jax.random.key(0))
    assert losses.shape == (2, 3) and losses.dtype == jnp.float32
    if kind == "regression":
        np.testing.assert_allclose(losses, 0, atol=1e-12)


def test_every_large_weight_has_named_axes():
    for kind in KINDS:
        for name, axes in flatten(logical_axes(tiny(kind))).items():
            assert name.endswith("bias") or any(axes), name


@pytest.mark.parametrize("kind", ["codes", *KINDS])
def test_two_right_answers(kind):
    """A regression lands between them; each of the others on one, and on both equally often."""
    demo = runpy.run_path(str(REPO / "benchmarks" / "two_answers.py"))
    angles, _ = demo["draw"](jax.random.key(3), 500)
    landing = demo["land"](demo["train"](kind, 400), angles)
    if kind == "regression":
        assert landing.neither == 1.0
        assert np.linalg.norm(landing.draws, axis=-1).mean() < 0.2
    else:
        assert landing.neither < 0.1
        assert 0.4 < landing.one / (landing.one + landing.other) < 0.6


@pytest.mark.parametrize(
    "change", [{"kind": "gan"}, {"width": 0}, {"components": 0}, {"inner": -1}, {"depth": 0},
               {"steps": 0}]
)  # fmt: skip
def test_bad_sizes_are_refused(change):
    (field,) = change
    with pytest.raises(ValueError, match=field):
        ContinuousConfig(**{"kind": "flow", "width": 3} | change)
