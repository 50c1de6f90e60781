"""Rules to PartitionSpecs, the mesh, and which rows a process loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from slm_jax.nn import placement
from slm_jax.training import partitioning
from slm_jax.training.partitioning import Parallel

RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "vocab": ("tensor", "fsdp")}


@pytest.fixture(scope="module")
def mesh():
    return partitioning.make_mesh(Parallel(data=2, fsdp=2, tensor=2))


def test_rules_place_each_axis(mesh):
    assert placement.spec(("layers", "embed", "mlp"), (4, 8, 6), RULES, mesh) == P(
        None, "fsdp", "tensor"
    )
    assert placement.spec(("embed",), (8,), {}, mesh) == P(None)


def test_a_mesh_axis_serves_one_dimension(mesh):
    assert placement.spec(("vocab", "embed"), (8, 8), RULES, mesh) == P(("tensor", "fsdp"), None)
    assert placement.spec(("heads", "mlp"), (4, 4), RULES, mesh) == P("tensor", None)


def test_uneven_dimension_stays_whole(mesh):
    assert placement.spec(("embed", "mlp"), (7, 4), RULES, mesh) == P(None, "tensor")


def test_mesh_takes_the_devices_that_are_left():
    assert dict(partitioning.make_mesh(Parallel(fsdp=4)).shape) == {
        "data": 2, "fsdp": 4, "tensor": 1, "context": 1
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not divide 8 devices"):
        partitioning.make_mesh(Parallel(data=3, fsdp=1, tensor=1))


@pytest.mark.parametrize(
    "bad", [{"fsdp": 0}, {"data": 0}, {"context": 0}, {"slices": 0}, {"rules": {"embed": "model"}},
            {"rules": {str(i): None for i in range(16)}}]
)  # fmt: skip
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Parallel(**bad)


def test_slices_divide_the_replicas():
    """Only `data` goes from one group of devices to another."""
    devices = jax.devices()
    mesh = partitioning.make_mesh(Parallel(slices=2, fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    assert set(mesh.devices[:2].flat) == {*devices[:4]}
    assert set(mesh.devices[2:].flat) == {*devices[4:]}
    with pytest.raises(ValueError, match="data = 1 is not a multiple of slices = 2"):
        partitioning.make_mesh(Parallel(slices=2, fsdp=8))


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What `make_mesh` reads of a GPU; tests/aot_tpu has TPUs of two slices."""

    id: int
    slice_index: int  # one for each host, or each group of hosts that NVLink joins
    platform: str = "gpu"
    device_kind: str = "H200"
    process_index: int = 0


def test_slices_are_those_of_the_devices():
    gpus = [Gpu(number, number % 2) for number in range(8)]
    mesh = partitioning.make_mesh(Parallel(slices=2, fsdp=4), gpus)
    assert [{gpu.slice_index for gpu in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match="slices = 4, but 8 devices are in 2 slices"):
        partitioning.make_mesh(Parallel(slices=4), gpus)
    assert partitioning.make_mesh(Parallel(fsdp=8), gpus).shape["fsdp"] == 8


def test_batch_rows_reach_their_devices(mesh):
    batch = {"x": np.arange(24, dtype=np.int32).reshape(8, 3)}
    assert partitioning.local_rows(mesh, 8).tolist() == list(range(8))
    placed = partitioning.put_batch(batch, mesh, 8)["x"]
    np.testing.assert_array_equal(placed, batch["x"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_columns_are_divided_over_context():
    mesh = partitioning.make_mesh(Parallel(fsdp=2, context=4))
    random = np.random.default_rng(0)
    shapes = {"tokens": (4, 3, 8), "positions": (4, 8), "seeds": (4,), "vectors": (4, 8, 5)}
    batch = {name: random.normal(size=shape) for name, shape in shapes.items()}
    placed = partitioning.put_batch(batch, mesh, 4)
    parts = {
        name: {shard.data.shape for shard in x.addressable_shards} for name, x in placed.items()
    }
    assert parts == {
        "tokens": {(2, 3, 2)}, "positions": {(2, 2)}, "seeds": {(2,)}, "vectors": {(2, 2, 5)}
    }  # fmt: skip
    for name, whole in batch.items():
        np.testing.assert_array_equal(placed[name], whole.astype(np.float32))


def test_activations_are_placed_on_the_mesh_in_use(mesh):
    x = jnp.zeros((4, 6, 3, 8))
    names = ("rows", "columns", "heads", None)
    assert placement.constrain(x, *names) is x
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: placement.constrain(x, *names))(x)
    # Three heads stay whole on two devices.
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 6, 3, 8)}


def test_shardings_of_a_tree_divide_the_bytes(mesh):
    abstract = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    placed = partitioning.shardings({"w": ("embed", "mlp")}, abstract, RULES, mesh)
    w = jax.device_put(np.zeros((8, 8), np.float32), placed["w"])
    assert {shard.data.shape for shard in w.addressable_shards} == {(4, 4)}
