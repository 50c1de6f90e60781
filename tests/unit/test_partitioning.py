"""Rules to PartitionSpecs, the mesh, and which rows a process loads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from slm_jax.training import partitioning
from slm_jax.training.partitioning import Parallel

RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "vocab": ("tensor", "fsdp")}


@pytest.fixture(scope="module")
def mesh():
    return partitioning.make_mesh(Parallel(data=2, fsdp=2, tensor=2))


def test_rules_place_each_axis(mesh):
    assert partitioning.spec(("layers", "embed", "mlp"), (4, 8, 6), RULES, mesh) == P(
        None, "fsdp", "tensor"
    )
    assert partitioning.spec(("embed",), (8,), {}, mesh) == P(None)


def test_a_mesh_axis_serves_one_dimension(mesh):
    assert partitioning.spec(("vocab", "embed"), (8, 8), RULES, mesh) == P(("tensor", "fsdp"), None)
    assert partitioning.spec(("heads", "mlp"), (4, 4), RULES, mesh) == P("tensor", None)


def test_uneven_dimension_stays_whole(mesh):
    assert partitioning.spec(("embed", "mlp"), (7, 4), RULES, mesh) == P(None, "tensor")


def test_mesh_takes_the_devices_that_are_left():
    assert dict(partitioning.make_mesh(Parallel(fsdp=4)).shape) == {
        "data": 2, "fsdp": 4, "tensor": 1
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not divide 8 devices"):
        partitioning.make_mesh(Parallel(data=3, fsdp=1, tensor=1))


@pytest.mark.parametrize(
    "bad", [{"fsdp": 0}, {"data": 0}, {"rules": {"embed": "model"}},
            {"rules": {str(i): None for i in range(16)}}]
)  # fmt: skip
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Parallel(**bad)


def test_batch_rows_reach_their_devices(mesh):
    batch = {"x": np.arange(24, dtype=np.int32).reshape(8, 3)}
    assert partitioning.local_rows(mesh, 8).tolist() == list(range(8))
    placed = partitioning.put_batch(batch, mesh, 8)["x"]
    np.testing.assert_array_equal(placed, batch["x"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_shardings_of_a_tree_divide_the_bytes(mesh):
    abstract = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    placed = partitioning.shardings({"w": ("embed", "mlp")}, abstract, RULES, mesh)
    w = jax.device_put(np.zeros((8, 8), np.float32), placed["w"])
    assert {shard.data.shape for shard in w.addressable_shards} == {(4, 4)}
