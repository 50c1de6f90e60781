"""The most bytes alive at once, of programs whose answer is counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from slm_jax.planning import liveness

ROWS, WIDTH, LAYERS = 8, 16, 5
ARRAY = ROWS * WIDTH * 4  # bytes of x
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
WEIGHT = WIDTH * WIDTH * 4


def peak(function, *arguments, shares=None, results=None, platform="tpu"):
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    shares = shares or [1.0] * len(traced.invars)
    return liveness.peak(traced, shares, results or [1.0] * len(traced.outvars), platform)


def test_a_buffer_lives_until_it_is_read_last():
    assert peak(lambda x, w: x @ w, X, SQUARE) == ARRAY
    assert peak(lambda x, w: x @ w @ w @ w, X, SQUARE) == 2 * ARRAY  # what is read and what is made

    def used_again(x, w):
        first = x @ w
        return first @ w @ w @ first.T

    third = ROWS * ROWS * 4
    assert peak(used_again, X, SQUARE) == max(3 * ARRAY, 2 * ARRAY + third)


def test_what_is_made_number_by_number_is_made_again():
    """The exponents of a softmax in f32, of logits in bfloat16, are no buffer."""
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16)

    def loss(x, w):
        logits = (x @ w).astype(jnp.float32)
        return jnp.exp(logits - 1).sum() + jnp.exp(2 * logits).sum()

    w = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.bfloat16)
    assert ARRAY // 2 < peak(loss, x, w) < ARRAY // 2 + 64  # and some sums

    def product(x, w):  # of two buffers: smaller than both
        a, b = x @ w, x @ (w + w)
        c = a * b
        return c @ w @ w + c

    assert peak(product, X, SQUARE) == 3 * ARRAY  # in the place of a

    def normed(x, w):
        y = x @ w
        return jnp.tanh(y) @ w @ y.T

    square = ROWS * ROWS * 4
    assert peak(normed, X, SQUARE) == 2 * ARRAY + square
    assert peak(normed, X, SQUARE, platform="cpu") == 3 * ARRAY  # tanh(y) is one there


def test_a_loop_holds_what_it_stacks_and_one_turn():
    def body(x, w):
        return (x @ w) @ w, x

    def loop(x, w):
        return jax.lax.scan(body, x, w)

    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    # The stack, the carry, and within a turn two products and the x that is stacked.
    found = peak(loop, X, weights)
    assert LAYERS * ARRAY + 3 * ARRAY <= found <= LAYERS * ARRAY + 4 * ARRAY


def test_layers_keep_their_input_and_the_last_its_inside():
    """L inputs and the inside of a layer that is computed again, not of all of them."""

    def gradients(layers, inner, remat):
        weights = [
            jax.ShapeDtypeStruct((layers, *shape), jnp.float32)
            for shape in ((WIDTH, inner), (inner, WIDTH))
        ]

        def layer(x, w):
            return jnp.tanh(x @ w[0]) @ w[1], None

        step = jax.checkpoint(layer, prevent_cse=False) if remat else layer

        def gradient(weights, x):
            return jax.grad(lambda w: jax.lax.scan(step, x, w)[0].sum())(weights)

        own = sum(layers * WIDTH * inner * 4 for _ in weights)
        return peak(gradient, weights, X) - own

    inner = 10 * WIDTH
    column = ROWS * 4
    once = [gradients(layers, inner, remat=True) for layers in (LAYERS, LAYERS + 1)]
    kept = [gradients(layers, inner, remat=False) for layers in (LAYERS, LAYERS + 1)]
    assert once[1] - once[0] == column * WIDTH
    assert kept[1] - kept[0] >= column * (WIDTH + inner)


def test_of_gradients_a_part_stays():
    """Each is whole when it is made, and a quarter from then on."""
    row = jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)

    def gradient(weights, x):
        return jax.grad(lambda weights: sum(((x @ w) ** 2).sum() for w in weights))(weights)

    weights = [SQUARE] * 4
    whole = peak(gradient, weights, row)
    quarter = peak(gradient, weights, row, results=[0.25] * 4)
    assert whole - quarter == 3 * 0.75 * WEIGHT


def test_weights_are_gathered_from_their_first_product_to_their_last():
    def forward(w, x):
        return x @ w["a"] @ w["b"] @ w["c"]

    weights = dict.fromkeys("abc", SQUARE)
    assert peak(forward, weights, X) == 2 * ARRAY
    parts = [0.25] * 3 + [1.0]
    assert peak(forward, weights, X, shares=parts) == 2 * ARRAY + WEIGHT

    def again(w, x):
        return forward(w, x) @ w["a"]

    assert peak(again, weights, X, shares=parts) == 2 * ARRAY + 2 * WEIGHT

    def half(w, x):  # gathered in the dtype of the product
        return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)

    assert peak(half, SQUARE, X, shares=[0.25, 1.0]) == ARRAY / 2 + WEIGHT / 2

    def layers(w, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    stacked = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    alone = peak(layers, stacked, X)
    assert peak(layers, stacked, X, shares=[0.25, 1.0]) == alone + WEIGHT  # one layer's


def test_what_lies_with_the_host_takes_nothing():
    host = jax.memory.Space.Host

    def away(x, w):
        y = x @ w
        kept = jax.device_put(y, host)
        z = y @ w @ w
        return z + jax.device_put(kept, jax.memory.Space.Device)

    def here(x, w):
        y = x @ w
        z = y @ w @ w @ w @ w
        return z + y

    assert peak(away, X, SQUARE) == 2 * ARRAY
    assert peak(here, X, SQUARE) == 3 * ARRAY


@pytest.mark.parametrize("index", [0, 1])
def test_of_branches_the_larger_counts(index):
    small, large = (lambda x, w: x @ w), (lambda x, w: (x @ w) @ (w @ w))
    branches = (small, large) if index else (large, small)

    def either(x, w):
        return jax.lax.switch(0, branches, x, w)

    assert peak(either, X, SQUARE) == ARRAY + peak(large, X, SQUARE)
