"""The loss of a prediction is no gather, sort or scatter on a TPU, forward or backward."""

import jax
import jax.numpy as jnp
import pytest

from slm_jax.nn.losses import cross_entropy
from slm_jax.planning import accelerators, topologies
from slm_jax.training.partitioning import Parallel, make_mesh, replicated

pytestmark = pytest.mark.aot


def test_it_joins_the_softmax():
    mesh = make_mesh(Parallel(), topologies.devices(accelerators.parse("v5e-1")))

    def abstract(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def loss(logits, targets, weights):
        return (cross_entropy(logits, targets, weights) * weights).sum()

    cells = 2, 1024
    args = abstract(*cells, 4160, dtype=jnp.bfloat16), abstract(*cells, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).lower(*args, abstract(*cells, dtype=jnp.float32))
        text = lowered.compile().as_text()
    assert not any(f" {name}(" in text for name in ("gather", "scatter", "sort"))
