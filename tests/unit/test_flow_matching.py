"""Flow matching against fields whose end is known, and on data of two modes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from slm_jax.nn.flow import euler, path
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.flow_matching import (
    FlowConfig,
    Velocity,
    conditioned,
    flow_loss,
    forgotten,
    guided,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_paths_begin_in_noise_and_end_in_data():
    noise, data = normal(0, 3, 5, 2), normal(1, 3, 5, 2)
    begin, velocity = path(noise, data, jnp.zeros(3))
    end, same = path(noise, data, jnp.ones(3))
    np.testing.assert_allclose(begin, noise)
    np.testing.assert_allclose(end, data, atol=1e-3)
    np.testing.assert_allclose(velocity, same)
    np.testing.assert_allclose(begin + velocity, end, atol=1e-5)
    # Each row is at its own time.
    middle, _ = path(noise, data, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(middle[1], (noise[1] + data[1]) / 2, atol=1e-3)
    np.testing.assert_allclose(middle[2], end[2])


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_straight_paths_need_few_steps(steps):
    start, data = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    end = euler(lambda x, t: (data - x) / (1 - t[:, None, None]), start, steps)
    np.testing.assert_allclose(end, data, atol=1e-5)


def test_curved_paths_need_many():
    """dx/dt = -x and dx/dt = 3 t^2: e^-1 x and x + 1, with an error of the order of a step."""
    start = normal(0, 2, 3, 4)
    ends = [euler(lambda x, t: -x, start, steps) for steps in (10, 1000)]
    np.testing.assert_allclose(ends[0], start * 0.9**10, rtol=1e-5)
    np.testing.assert_allclose(ends[1], start * np.exp(-1), rtol=1e-3)
    end = euler(lambda x, t: jnp.ones_like(x) * 3 * t[:, None, None] ** 2, start, 1000)
    np.testing.assert_allclose(end, start + 1, atol=2e-3)


def test_the_loss_of_the_true_velocity_is_nothing_and_padding_does_not_count():
    data, key = normal(1, 4, 6, 2), jax.random.key(3)
    mask = jnp.ones((4, 6)).at[:, 4:].set(0)

    def true(x, t):  # the path solved for its noise
        t = t[:, None, None]
        sigma = 1 - 1e-4
        return data - sigma * (x - t * data) / (1 - sigma * t)

    def wrong_in_padding(x, t):
        return true(x, t) + 7 * (1 - mask)[..., None]

    assert flow_loss(true, data, mask, key) < 1e-6
    assert flow_loss(wrong_in_padding, data, mask, key) < 1e-6
    assert flow_loss(lambda x, t: true(x, t) + 2, data, mask, key) == pytest.approx(4, rel=1e-3)


def tiny(features=2, **changes):
    config = FlowConfig(**{"width": 16, "mlp": 32, "layers": 2} | changes)
    return Velocity(config, features, 3, 4, rngs=nnx.Rngs(0))


def test_an_untrained_network_draws_gaussians_around_its_mean():
    """Where noise x ends is known: at mean + 0.4 x."""
    graphdef, params = pure_params(tiny())
    params["leave"] = jax.tree.map(jnp.zeros_like, params["leave"])
    params["mean"] = {"kernel": jnp.ones((3, 2)), "bias": jnp.array([0.0, -1.0])}
    states, mask, start = normal(1, 2, 5, 3), jnp.ones((2, 5)), normal(0, 2, 5, 2)
    field = conditioned(merge(graphdef, params), states, jnp.zeros((2, 4)), mask)
    mean = states.sum(-1, keepdims=True) + params["mean"]["bias"]
    np.testing.assert_allclose(euler(field, start, 500), mean + 0.4 * start, atol=0.02)


def test_guidance_pushes_away_from_what_is_said_without_a_condition():
    network, mask = tiny(), jnp.ones((2, 5))
    x, t = normal(0, 2, 5, 2), jnp.array([0.2, 0.7])
    states, speaker = normal(1, 2, 5, 3), normal(2, 2, 4)
    told = conditioned(network, states, speaker, mask)(x, t)
    untold = conditioned(network, 0 * states, 0 * speaker, mask)(x, t)
    assert np.abs(told - untold).max() > 0.01
    pushed = guided(network, states, speaker, mask, 0.7)(x, t)
    np.testing.assert_allclose(pushed, 1.7 * told - 0.7 * untold, atol=1e-5)
    np.testing.assert_array_equal(guided(network, states, speaker, mask, 0.0)(x, t), told)


def test_the_network_hears_the_time_and_no_padding():
    network = tiny()
    x, states, speaker = normal(0, 1, 8, 2), normal(1, 1, 8, 3), normal(2, 1, 4)
    mask = jnp.ones((1, 8)).at[:, 5:].set(0)
    early, late = (network(x, jnp.full(1, t), states, speaker, mask) for t in (0.1, 0.9))
    assert np.abs(early - late).max() > 0.01
    alone = network(x[:, :5], jnp.full(1, 0.1), states[:, :5], speaker, mask[:, :5])
    np.testing.assert_allclose(early[:, :5], alone, atol=1e-6)
    assert (np.asarray(early[:, 5:]) == 0).all()


def test_rows_forget_state_and_speaker_together():
    states, speaker = jnp.ones((2000, 2, 1)), jnp.ones((2000, 3))
    some, voices = forgotten(jax.random.key(0), 0.2, states, speaker)
    kept = np.asarray(voices[:, 0])
    assert 0.76 < kept.mean() < 0.84
    np.testing.assert_array_equal(some[:, 0, 0], kept)
    assert (forgotten(jax.random.key(0), 0.0, states, speaker)[0] == 1).all()


def test_two_modes_are_drawn_where_a_regression_lands_between_them():
    """Points at (1, 1) and (-1, -1), each seen half of the time under the same condition."""
    graphdef, params = pure_params(tiny(layers=1))
    rows = 128
    nothing = (jnp.zeros((rows, 1, 3)), jnp.zeros((rows, 4)), jnp.ones((rows, 1)))
    optimizer = optax.adam(3e-3)

    def learn(loss, steps=400):
        @jax.jit
        def step(number, carry):
            params, opt = carry
            key, draw = jax.random.split(jax.random.key(number))
            side = jnp.where(jax.random.bernoulli(draw, 0.5, (rows, 1, 1)), 1.0, -1.0)
            data = jnp.broadcast_to(side, (rows, 1, 2))
            grads = jax.grad(loss)(params, data, key)
            updates, opt = optimizer.update(grads, opt)
            return optax.apply_updates(params, updates), opt

        return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

    def flow(params, data, key):
        return flow_loss(conditioned(merge(graphdef, params), *nothing), data, nothing[2], key)

    def regress(params, data, key):
        del key
        said = merge(graphdef, params)(jnp.zeros((rows, 1, 2)), jnp.zeros(rows), *nothing)
        return jnp.mean((said - data) ** 2)

    field = conditioned(merge(graphdef, learn(flow)), *nothing)
    points = np.asarray(euler(field, normal(9, rows, 1, 2), 20))[:, 0]
    near = [np.linalg.norm(points - mode, axis=1) < 0.4 for mode in (1.0, -1.0)]
    assert (near[0] | near[1]).mean() > 0.9
    assert 0.3 < near[0].mean() < 0.7
    mean = merge(graphdef, learn(regress))(jnp.zeros((rows, 1, 2)), jnp.zeros(rows), *nothing)
    assert np.abs(mean).max() < 0.4


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="steps"):
        FlowConfig(steps=0)
    with pytest.raises(ValueError, match="guidance"):
        FlowConfig(guidance=-0.1)
