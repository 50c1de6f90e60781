"""Where an array lives on the mesh: from the names of its axes to those of the mesh.

The mesh (data, fsdp, tensor, context) is made in `slm_jax.training.partitioning`, which places
parameters by the rules of a run. What a network computes has its place by `ACTIVATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

MeshAxes = str | tuple[str, ...] | None

MESH_AXES = ("data", "fsdp", "tensor", "context")
ACTIVATIONS: Mapping[str, MeshAxes] = {
    "rows": ("data", "fsdp"),
    "columns": "context",
    "cells": ("data", "fsdp", "context"),  # columns of all rows, one after the other
    "heads": "tensor",
    "mlp": "tensor",
}


class Parts(NamedTuple):
    """How many parts each axis of `ACTIVATIONS` is divided into on the mesh in use."""

    rows: int
    heads: int
    columns: int


def axes(target: MeshAxes) -> tuple[str, ...]:
    """The mesh axes that a rule names."""
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else tuple(target)


def spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    rules: Mapping[str, MeshAxes],
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    """Where an array with these named axes lives.

    A mesh axis serves one dimension of an array, the first that asks; a dimension that the mesh
    axes do not divide evenly stays whole.
    """
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        free = tuple(axis for axis in axes(rules.get(name)) if axis not in taken)
        if size % math.prod(mesh.shape[axis] for axis in free):
            free = ()
        taken.update(free)
        entries.append(free or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x`, placed by `ACTIVATIONS` on the mesh of `jax.set_mesh`; as it is where that is none.

    Args:
      x: any array.
      names: of its axes, in `ACTIVATIONS`; along an axis that is None each device has all of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0 for none
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, ACTIVATIONS, mesh))


def parts() -> Parts:
    """Those of the mesh of `jax.set_mesh`."""
    sizes = jax.sharding.get_abstract_mesh().shape
    named = (axes(ACTIVATIONS[name]) for name in Parts._fields)
    return Parts(*(math.prod(sizes.get(axis, 1) for axis in one) for one in named))
