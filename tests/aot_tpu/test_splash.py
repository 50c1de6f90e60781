"""Splash attention becomes TPU kernels, forward and backward, in one piece and over a mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.placement import ACTIVATIONS
from slm_jax.planning import accelerators, topologies
from slm_jax.training.partitioning import Parallel, make_mesh

pytestmark = pytest.mark.aot

KERNELS = 3  # forward; backward for the queries; backward for keys and values
COLUMNS = 1024
CASES = {  # topology, mesh, head_dim, window
    "one chip": ("v5e-1", Parallel(), 64, None),
    "wide heads, window": ("v5p-8", Parallel(fsdp=4), 128, 300),
    "every axis": ("v6e-8", Parallel(data=1, fsdp=2, tensor=2, context=2), 64, None),
}


def compiled(topology, parallel, width, window, segmented=True):
    """Gradients of attention over packed rows, as the text of a TPU program."""
    mesh = make_mesh(parallel, topologies.devices(accelerators.parse(topology)))
    rows = NamedSharding(mesh, PartitionSpec(ACTIVATIONS["rows"], ACTIVATIONS["columns"]))

    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def gradients(q, k, v, ids):
        mask = MaskSpec(True, window, ids, ids)
        return jax.grad(lambda qkv: attention(*qkv, mask).astype(jnp.float32).sum())((q, k, v))

    batch = mesh.shape["data"] * mesh.shape["fsdp"]
    q, k = (abstract(batch, COLUMNS, heads, width) for heads in (4, 2))
    ids = abstract(batch, COLUMNS, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        return jax.jit(gradients).lower(q, k, k, ids).compile().as_text()


@pytest.mark.parametrize("case", CASES)
def test_compiles_in_both_directions_with_segment_ids(case):
    text = compiled(*CASES[case])
    assert text.count('custom_call_target="tpu_custom_call"') == KERNELS
    assert "splash_mha_fwd_segmented" in text
    assert f"{COLUMNS},{COLUMNS}]" not in text  # scores
