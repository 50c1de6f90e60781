"""Which device holds which part of an array: a mesh, and rules from logical axes to its axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from slm_jax.nn import placement, tree
from slm_jax.nn.placement import MESH_AXES, MeshAxes

AUTO = (AxisType.Auto,) * len(MESH_AXES)  # the default, Explicit, makes constraints asserts
ROWS = placement.ACTIVATIONS["rows"]
COLUMNS = placement.ACTIVATIONS["columns"]
VECTORS = ("vectors", "vector_targets")  # leaves of a batch whose last axis is not the columns'
MAX_RULES = 15


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The mesh, and where each logical axis of the parameters goes.

    Attributes:
      data: replicas of the model, each on its own rows of the batch; -1 takes the devices that
        the others leave.
      fsdp: devices that share one replica's parameters and optimizer state, each on its own rows.
      tensor: devices that share the products of each layer.
      context: devices that share the columns of a row; each sees the keys and values of all.
      slices: groups of devices with a slow network between them (TPU slices, hosts of GPUs);
        `data` is a multiple, so that only gradients and sums of losses go from one to another.
      rules: logical axis -> mesh axis (or axes); an axis without a rule is replicated.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1
    rules: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data must be at least 1, or -1 for what is left, got {self.data}")
        for name in ("fsdp", "tensor", "context", "slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.rules) > MAX_RULES:
            raise ValueError(f"rules: {len(self.rules)} of them, at most {MAX_RULES}")
        for logical, target in self.rules.items():
            for axis in placement.axes(target):
                if axis not in MESH_AXES:
                    known = ", ".join(MESH_AXES)
                    raise ValueError(f"rules: {logical} -> {axis!r}, the mesh has {known}")


def abstract_mesh(parallel: Parallel, devices: int) -> AbstractMesh:
    """The (data, fsdp, tensor, context) mesh of so many devices, which need not be here.

    Raises:
      ValueError: they cannot be divided so.
    """
    inner = (parallel.fsdp, parallel.tensor, parallel.context)
    data = devices // math.prod(inner) if parallel.data == -1 else parallel.data
    if data * math.prod(inner) != devices or data == 0:
        wanted = " x ".join(map(str, (parallel.data, *inner)))
        raise ValueError(f"{' x '.join(MESH_AXES)} = {wanted} does not divide {devices} devices")
    if data % parallel.slices:
        raise ValueError(f"data = {data} is not a multiple of slices = {parallel.slices}")
    return AbstractMesh((data, *inner), MESH_AXES, axis_types=AUTO)


def make_mesh(parallel: Parallel, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The (data, fsdp, tensor, context) mesh over `devices` (default: all of every process).

    Raises:
      ValueError: the devices cannot be divided so, or are not of that many slices.
    """
    devices = jax.devices() if devices is None else devices
    data, *inner = abstract_mesh(parallel, len(devices)).axis_sizes
    # jax.make_mesh takes one slice only, and each host of GPUs counts as one.
    shape = (data // parallel.slices, *inner)
    grids = [
        mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True)
        for part in _slices(devices, parallel.slices)
    ]
    return Mesh(np.concatenate(grids), MESH_AXES, axis_types=AUTO)


def shardings(
    logical: tree.Params,
    abstract: tree.Params,
    rules: Mapping[str, MeshAxes],
    mesh: Mesh | AbstractMesh,
) -> tree.Params:
    """A NamedSharding for every array of `abstract`, whose axis names `logical` gives."""
    names = tree.flatten(logical)
    return tree.unflatten(
        {
            path: NamedSharding(mesh, placement.spec(names[path], value.shape, rules, mesh))
            for path, value in tree.flatten(abstract).items()
        }
    )


def batch_shardings(
    batch: Mapping[str, Any], mesh: Mesh | AbstractMesh
) -> dict[str, NamedSharding]:
    """Where each leaf of a batch lives: rows over data and fsdp, columns over context.

    Args:
      batch: name -> anything with `ndim`, as `slm_jax.data.rows.pack_row` names them.
      mesh: of `make_mesh`.
    """
    found = {}
    for name, leaf in batch.items():
        axes: list[MeshAxes] = [ROWS] + [None] * (leaf.ndim - 1)
        if leaf.ndim > 1:
            axes[1 if name in VECTORS else -1] = COLUMNS
        found[name] = NamedSharding(mesh, PartitionSpec(*axes))
    return found


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that this process's devices need, ascending.

    Processes that share rows (tensor or context parallelism across hosts) get the same ones, and
    make all columns of them.
    """
    rows: set[int] = set()
    slices = NamedSharding(mesh, PartitionSpec(ROWS)).addressable_devices_indices_map((batch_size,))
    for (piece,) in slices.values():
        rows.update(range(*piece.indices(batch_size)))
    return np.array(sorted(rows))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Global arrays out of this process's `local_rows`; a device takes its columns of its rows."""
    rows = local_rows(mesh, batch_size)

    def put(local: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return local[first : first + stop - start, *index[1:]]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    placed = batch_shardings(batch, mesh)
    with jax.transfer_guard_host_to_device("allow"):  # asked for, though JAX cannot tell
        return {name: put(local, placed[name]) for name, local in batch.items()}


def _slices(devices: Sequence[jax.Device], count: int) -> list[Sequence[jax.Device]]:
    """The devices of each slice."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    if count == 1 and not (len(found) > 1 and devices[0].platform == "tpu"):
        return [devices]
    if devices[0].platform == "cpu":  # which has no slices: equal parts rehearse them
        return [part.tolist() for part in np.split(np.array(devices), count)]
    if len(found) != count:
        raise ValueError(f"slices = {count}, but {len(devices)} devices are in {len(found)} slices")
    return [found[number] for number in sorted(found)]
