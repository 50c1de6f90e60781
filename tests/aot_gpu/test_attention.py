"""Attention becomes GPU kernels, forward and backward: flash where rows are packed, else cuDNN."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.placement import ACTIVATIONS
from slm_jax.planning import accelerators, topologies
from slm_jax.training.chips import CHIPS, of_kind
from slm_jax.training.partitioning import Parallel, make_mesh

pytestmark = pytest.mark.aot

COLUMNS = 1024
TRITON, CUDNN = r"__gpu\$xla\.gpu\.triton", r"__cudnn\$fmha\w*"
ONE, MANY = Parallel(), Parallel(data=2, fsdp=2, tensor=2)
CASES = {  # GPUs, mesh, columns, head_dim, segmented, window, kernels
    "packed": ("h100-1", ONE, COLUMNS, 64, True, None, [TRITON] * 3),
    "packed, wide heads, every axis": ("h200-8", MANY, COLUMNS, 128, True, None, [TRITON] * 3),
    "packed, Ampere": ("a100-1", ONE, COLUMNS, 128, True, None, [TRITON] * 3),
    "whole rows": ("h100-1", ONE, COLUMNS, 64, False, None, [CUDNN] * 2),
    "whole rows, window": ("h100-1", ONE, COLUMNS, 128, False, 300, [CUDNN] * 2),
    "short rows, every axis": ("h100-8", MANY, 32, 64, False, None, [CUDNN] * 2),
    "odd rows, which cuDNN refuses": ("h100-1", ONE, 33, 64, False, None, []),
}


def compiled(gpus, parallel, columns, width, segmented, window):
    """Gradients of attention, as the text of a GPU program."""
    mesh = make_mesh(parallel, topologies.devices(accelerators.parse(gpus)))
    rows = NamedSharding(mesh, PartitionSpec(ACTIVATIONS["rows"]))

    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def gradients(q, k, v, ids):
        mask = MaskSpec(True, window, *[ids if segmented else None] * 2)
        return jax.grad(lambda qkv: attention(*qkv, mask).astype(jnp.float32).sum())((q, k, v))

    q, k = (abstract(4, columns, heads, width) for heads in (4, 2))
    ids = abstract(4, columns, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        return jax.jit(gradients).lower(q, k, k, ids).compile().as_text()


@pytest.mark.parametrize("case", CASES)
def test_compiles_in_both_directions(case):
    *asked, kernels = CASES[case]
    text = compiled(*asked)
    found = re.findall(r'custom_call_target="([^"]+)"', text)
    found = [name for name in found if re.fullmatch(f"{TRITON}|{CUDNN}", name)]
    assert len(found) == len(kernels)
    assert all(map(re.fullmatch, kernels, found))
    assert f"{COLUMNS},{COLUMNS}]" not in text  # scores


@pytest.mark.parametrize("name", ["h100-1", "h200-8", "a100-24"])
def test_gpus_are_described_as_they_are_called(name):
    accelerator = accelerators.parse(name)
    found = topologies.devices(accelerator)
    assert len(found) == accelerator.chips
    assert of_kind(found[0].device_kind) is CHIPS[accelerator.chip.name]
    assert len({device.process_index for device in found}) == accelerator.hosts
