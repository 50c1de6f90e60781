"""The mesh over TPU slices that only the data centre's network joins."""

import pytest

from slm_jax.planning import accelerators, topologies
from slm_jax.training.partitioning import Parallel, make_mesh

pytestmark = pytest.mark.aot


def test_only_data_goes_from_slice_to_slice():
    chips = topologies.devices(accelerators.parse("2xv5e-16"))
    mesh = make_mesh(Parallel(slices=2, fsdp=8, tensor=2), chips)
    assert mesh.devices.shape == (2, 8, 2, 1)
    assert [{chip.slice_index for chip in replica.flat} for replica in mesh.devices] == [{0}, {1}]


def test_slices_must_be_told():
    chips = topologies.devices(accelerators.parse("2xv5e-16"))
    with pytest.raises(ValueError, match="slices = 1, but 32 devices are in 2 slices"):
        make_mesh(Parallel(fsdp=32), chips)
