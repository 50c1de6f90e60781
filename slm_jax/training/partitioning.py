"""Which device holds which part of an array: a mesh, and rules from logical axes to its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from slm_jax.nn import tree

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
MAX_RULES = 15


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The mesh, and where each logical axis of the parameters goes.

    Attributes:
      data: replicas of the model, each on its own rows of the batch; -1 takes the devices that
        the other two leave.
      fsdp: devices that share one replica's parameters and optimizer state, each on its own rows.
      tensor: devices that share the products of each layer.
      rules: logical axis -> mesh axis (or axes); an axis without a rule is replicated.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data must be at least 1, or -1 for what is left, got {self.data}")
        if self.fsdp < 1 or self.tensor < 1:
            field = "fsdp" if self.fsdp < 1 else "tensor"
            raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if len(self.rules) > MAX_RULES:
            raise ValueError(f"rules: {len(self.rules)} of them, at most {MAX_RULES}")
        for logical, target in self.rules.items():
            for axis in _axes(target):
                if axis not in MESH_AXES:
                    known = ", ".join(MESH_AXES)
                    raise ValueError(f"rules: {logical} -> {axis!r}, the mesh has {known}")


def make_mesh(parallel: Parallel, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The (data, fsdp, tensor) mesh over `devices` (default: all of every process).

    Raises:
      ValueError: the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else devices
    inner = parallel.fsdp * parallel.tensor
    data = len(devices) // inner if parallel.data == -1 else parallel.data
    if data * inner != len(devices) or data == 0:
        raise ValueError(
            f"data x fsdp x tensor = {parallel.data} x {parallel.fsdp} x {parallel.tensor} "
            f"does not divide {len(devices)} devices"
        )
    shape = (data, parallel.fsdp, parallel.tensor)
    auto = (AxisType.Auto,) * len(MESH_AXES)  # the default, Explicit, makes constraints asserts
    return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def spec(
    logical: Sequence[str | None], shape: Sequence[int], rules: Mapping[str, Any], mesh: Mesh
) -> PartitionSpec:
    """Where an array with these logical axes lives.

    A mesh axis serves one dimension of an array, the first that asks; a dimension that the mesh
    axes do not divide evenly stays whole.
    """
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(logical, shape, strict=True):
        axes = tuple(axis for axis in _axes(rules.get(name)) if axis not in taken)
        if size % int(np.prod([mesh.shape[axis] for axis in axes])):
            axes = ()
        taken.update(axes)
        entries.append(axes or None)
    return PartitionSpec(*entries)


def shardings(
    logical: tree.Params, abstract: tree.Params, rules: Mapping[str, Any], mesh: Mesh
) -> tree.Params:
    """A NamedSharding for every array of `abstract`, whose axis names `logical` gives."""
    names = tree.flatten(logical)
    return tree.unflatten(
        {
            path: NamedSharding(mesh, spec(names[path], value.shape, rules, mesh))
            for path, value in tree.flatten(abstract).items()
        }
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of the batch over data and fsdp; the other axes whole."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that this process's devices need, ascending.

    Processes that share rows (tensor parallelism across hosts) get the same ones.
    """
    rows: set[int] = set()
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    for (piece,) in slices.values():
        rows.update(range(*piece.indices(batch_size)))
    return np.array(sorted(rows))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Global arrays out of this process's `local_rows`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def _axes(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else tuple(target)
