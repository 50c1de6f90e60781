import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from slm_jax.nn.conv import Conv1d, ConvNeXt, depthwise_conv


def test_depthwise_conv_is_numpys():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 3)), rng.normal(size=(5, 3))
    out = depthwise_conv(jnp.asarray(x), jnp.asarray(kernel), jnp.zeros(3))
    for b in range(2):
        for d in range(3):
            wanted = np.convolve(x[b, :, d], kernel[::-1, d], mode="same")
            np.testing.assert_allclose(out[b, :, d], wanted, atol=1e-5)


def test_dense_conv_is_lax_conv():
    conv = Conv1d(3, 4, 5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8, 3))
    kernel = conv.linear.kernel[...].reshape(5, 3, 4)
    wanted = jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(conv(x), wanted, atol=1e-5)


def test_padding_of_a_batch_changes_nothing():
    net = ConvNeXt(8, 16, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 10, 8))
    short = net(x, jnp.ones((1, 10)))
    noise = jnp.pad(x, ((0, 0), (0, 7), (0, 0)), constant_values=3.0)
    long = net(noise, jnp.arange(17)[None] < 10)
    np.testing.assert_allclose(short[0], long[0, :10], atol=1e-5)


def test_lookahead_is_what_it_says():
    net = ConvNeXt(4, 8, 2, kernel=5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (1, 30, 4))
    changed = x.at[0, 20].add(1.0)
    difference = np.abs(np.asarray(net(x, jnp.ones((1, 30))) - net(changed, jnp.ones((1, 30)))))
    moved = np.flatnonzero(difference[0].max(-1) > 1e-7)
    assert moved.min() == 20 - net.lookahead


def test_a_causal_stack_step_by_step_is_the_whole_at_once():
    net = ConvNeXt(4, 8, 3, kernel=5, causal=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(3), (2, 9, 4))
    whole = net(x, jnp.ones((2, 9)))
    past, steps = net.start(2), []
    for t in range(9):
        out, past = net.step(x[:, t], past)
        steps.append(out)
    np.testing.assert_allclose(np.stack(steps, 1), whole, atol=1e-5)
    assert net.lookahead == 0


@pytest.mark.parametrize("causal", [False, True])
def test_the_written_out_gradient_of_depthwise_conv_is_right(causal):
    draw = jax.random.split(jax.random.key(4), 3)
    x, kernel = jax.random.normal(draw[0], (2, 9, 3)), jax.random.normal(draw[1], (5, 3))
    bias = jax.random.normal(draw[2], (3,))
    check_grads(lambda *a: depthwise_conv(*a, causal), (x, kernel, bias), 1, ["rev"], rtol=1e-2)
