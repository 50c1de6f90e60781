import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.nn.layers import Embedding, Linear, RMSNorm, scan_layers, stack


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = Embedding(7, 4, rngs=rngs)
        self.norms = nnx.List([RMSNorm(4) for _ in range(12)])
        self.layers = stack(
            lambda rngs: Linear(4, 4, rngs=rngs, axes=("embed", "mlp"), bias=True), 3, rngs
        )

    def __call__(self, ids):
        x = self.embed(ids)
        for norm in self.norms:
            x = norm(x)
        return scan_layers(self.layers, lambda layer, x, _: (layer(x), None), x)[0]


def test_params_go_out_and_come_back():
    net = Net(nnx.Rngs(0))
    net.norms[10].scale[...] = jnp.full(4, 2.0)
    graphdef, params = tree.pure_params(net)
    again = tree.merge(graphdef, tree.unflatten(tree.flatten(params)))
    ids = jnp.arange(7)
    np.testing.assert_allclose(jax.jit(lambda m, i: m(i))(again, ids), net(ids), rtol=1e-5)
    np.testing.assert_array_equal(again.norms[10].scale[...], 2.0)
    assert "norms/10/scale" in tree.flatten(params)


def test_stacked_layers_differ_and_scan_runs_them_in_order():
    layers = stack(lambda rngs: Linear(4, 4, rngs=rngs), 3, nnx.Rngs(0))
    kernels = np.asarray(layers.kernel[...])
    assert not np.allclose(kernels[0], kernels[1])
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for remat in ("none", "dots", "full"):
        got, seen = scan_layers(layers, lambda layer, x, i: (layer(x), i), x, jnp.arange(3), remat)
        np.testing.assert_allclose(got, x @ kernels[0] @ kernels[1] @ kernels[2], rtol=1e-5)
        assert seen.tolist() == [0, 1, 2]


def test_logical_axes_name_the_stacked_axis():
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    axes = tree.flatten(tree.logical_axes(abstract))
    assert axes["layers/kernel"] == ("layers", "embed", "mlp")
    assert axes["layers/bias"] == ("layers", "mlp")
    assert axes["embed/embedding"] == ("vocab", "embed")
    assert axes.keys() == tree.flatten(tree.pure_params(abstract)[1]).keys()


def test_lora_starts_at_zero_and_adds_its_product():
    layer = Linear(3, 5, rngs=nnx.Rngs(0), lora_rank=2, lora_alpha=4.0)
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(layer(x), x @ layer.kernel[...])
    layer.lora_b[...] = jnp.ones((2, 5))
    want = x @ (layer.kernel[...] + 2.0 * layer.lora_a[...] @ layer.lora_b[...])
    np.testing.assert_allclose(layer(x), want, rtol=1e-5)


def test_load_flat_names_every_weight_that_does_not_fit():
    target = {"a": {"b": np.zeros(2), "c": np.zeros(3)}, "d": np.zeros(1)}
    flat = {"a/b": np.ones(2), "a/c": np.ones(4), "e": np.ones(1)}
    with pytest.raises(UserError) as error:
        tree.load_flat(target, flat)
    for part in ("missing: d", "unexpected: e", "misshapen: a/c (4,), wanted (3,)"):
        assert part in str(error.value)


def test_load_flat_not_strict_keeps_the_rest():
    target = {"a": {"b": np.zeros(2)}, "d": np.zeros(1)}
    got = tree.load_flat(target, {"a/b": np.ones(2), "e": np.ones(1)}, strict=False)
    np.testing.assert_array_equal(got["a"]["b"], 1)
    np.testing.assert_array_equal(got["d"], 0)
