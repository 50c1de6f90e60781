"""What layers keep for the backward pass, by policy; gradients do not depend on it."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.models.cross_decoder import CrossDecoder
from slm_jax.models.depth import DepthTransformer
from slm_jax.models.nar import NarTrunk
from slm_jax.nn import tree
from slm_jax.nn.cross_decoder_config import CrossDecoderConfig
from slm_jax.nn.depth_config import DepthConfig
from slm_jax.nn.remat import POLICIES, Remat

ROWS, COLUMNS, LAYERS = 2, 6, 3
BACKBONE = BackboneConfig(
    vocab_size=0, width=16, layers=LAYERS, heads=4, kv_heads=2, head_dim=8, mlp_width=48
)
PLACES = np.tile(np.arange(COLUMNS), (ROWS, 1))
ONES = np.ones((ROWS, COLUMNS), int)


def backbone(remat):
    config = dataclasses.replace(BACKBONE, remat=remat)
    return Backbone(config, nnx.Rngs(0)), lambda model, x: model(x, PLACES)[0]


def dropping(remat):
    config, key = dataclasses.replace(BACKBONE, remat=remat, dropout=0.3), jax.random.key(1)
    return Backbone(config, nnx.Rngs(0)), lambda model, x: model(x, PLACES, key=key)[0]


def nar(remat):
    config = dataclasses.replace(BACKBONE, remat=remat)
    return NarTrunk(config, 2, nnx.Rngs(0)), lambda model, x: model(x, PLACES, ONES, ONES)


def cross_decoder(remat):
    config = CrossDecoderConfig(
        width=16, layers=LAYERS, heads=2, mlp_width=48, memory_width=16, remat=remat
    )
    return CrossDecoder(config, nnx.Rngs(0)), lambda model, x: model.run(x, PLACES, None, None, x)[
        0
    ]


def depth(remat):
    config = DepthConfig(
        width=16, layers=LAYERS, heads=4, kv_heads=2, head_dim=8, mlp_width=48, remat=remat
    )
    model = DepthTransformer(config, 16, (5, 6, 6), (6, 6, 6), nnx.Rngs(0))
    return model, lambda model, x: jnp.stack(model(x.reshape(-1, 16), np.ones((12, 3), int)))


def problem(make, remat):
    """(parameters, loss of them)."""
    model, run = make(remat)
    graphdef, params = tree.pure_params(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, COLUMNS, 16)), jnp.float32)
    return params, lambda params: jnp.sum(run(tree.merge(graphdef, params), x) ** 2)


def kept(make, remat):
    """Numbers of a layer and position that the forward pass leaves to the backward pass."""
    params, loss = problem(make, remat)
    stacked = [
        leaf
        for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))
        if leaf.shape[:1] == (LAYERS,)
    ]
    weights = sum(x.size for x in jax.tree.leaves(params["layers"]))
    return sum(x.size for x in stacked) - weights


@pytest.mark.parametrize("make", [backbone, nar, cross_decoder, depth])
def test_policies_keep_what_they_say(make):
    found = {remat: kept(make, remat) for remat in POLICIES}
    assert found["full"] < found["attention"] < found["offload"] < found["none"]
    assert found["full"] < found["dots"] < found["none"]


def test_the_numbers_kept_of_a_backbone():
    """Of a column and layer: its input (16), as for "full"; queries, keys, values and what is read
    of them (32 + 16 + 16 + 32); the two inner activations of the MLP (2 x 48)."""
    cells = LAYERS * ROWS * COLUMNS
    full = kept(backbone, "full")
    assert full == 16 * cells
    assert kept(backbone, "attention") == full + 96 * cells
    assert kept(backbone, "offload") == full + 192 * cells


@pytest.mark.parametrize("remat", POLICIES)
def test_only_offload_sends_activations_to_the_host(remat):
    params, loss = problem(backbone, remat)
    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert ("host" in program) == (remat == "offload")


def test_gradients_are_equal_and_dropout_is_drawn_again_as_it_was():
    gradients = {}
    for remat in ("none", "attention", "offload"):
        params, loss = problem(dropping, remat)
        gradients[remat] = jax.jit(jax.grad(loss))(params)
    for remat, gradient in gradients.items():
        jax.tree.map(
            lambda got, want, remat=remat: np.testing.assert_allclose(
                got, want, rtol=1e-4, atol=1e-4, err_msg=remat
            ),
            gradient,
            gradients["none"],
        )


def test_every_name_has_a_policy():
    assert set(typing.get_args(Remat)) == set(POLICIES)
