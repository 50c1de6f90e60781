"""What the planner believes about TPUs, asked of their compiler."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.errors import UserError
from slm_jax.planning import accelerators, topologies
from slm_jax.training import chips
from slm_jax.training.chips import CHIPS, GIB
from slm_jax.training.partitioning import Parallel, make_mesh, replicated

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("kind", topologies.SIZES)
def test_memory_is_what_the_compiler_grants(kind):
    mesh = make_mesh(Parallel(), topologies.devices(accelerators.parse(f"{kind}-8")))
    much = jax.ShapeDtypeStruct((200, GIB // 4), jnp.float32, sharding=replicated(mesh))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as caught:
        jax.jit(lambda x: (x * 2).sum()).lower(much).compile()
    granted = re.search(r"available HBM \(([\d.]+)G\)", str(caught.value))
    assert float(granted[1]) * GIB == pytest.approx(CHIPS[kind].memory, rel=1e-3)


@pytest.mark.parametrize("kind", topologies.SIZES)
def test_every_slice_of_the_table_exists(kind):
    for size in topologies.SIZES[kind]:
        accelerator = accelerators.parse(f"{kind}-{size}")
        found = topologies.devices(accelerator)
        assert len(found) == accelerator.chips
        assert {chips.of_kind(device.device_kind) for device in found} == {accelerator.chip}


def test_a_cube_of_v5p_is_a_torus():
    """Without its outer links the compiler gathers by sums of zeros: twice the bytes."""
    mesh = make_mesh(Parallel(fsdp=64), topologies.devices(accelerators.parse("v5p-128")))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    weight = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=rows)
    columns = jax.ShapeDtypeStruct((64, 1024, 4096), jnp.bfloat16, sharding=rows)
    product = jax.jit(lambda x, w: x @ w, out_shardings=rows).lower(columns, weight).compile()
    assert " all-gather" in product.as_text() and " all-reduce" not in product.as_text()


def test_slices_are_told_apart():
    found = topologies.devices(accelerators.parse("2xv5e-16"))
    assert len(found) == 32 and {device.slice_index for device in found} == {0, 1}


def test_what_is_not_described_is_refused():
    with pytest.raises(UserError, match="v4-8 cannot be compiled for") as caught:
        topologies.devices(accelerators.parse("v4-8"))
    assert "v5e, v6e, v5p, a100, h100, h200" in caught.value.remedy
