"""What a training run would be, for people; no weight is computed and nothing compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from slm_jax.nn import tree
from slm_jax.planning import memory
from slm_jax.training.setup import Program


def parameters(program: Program) -> str:
    """A line for each parameter: path, shape, dtype, where its dimensions lie, trained, count."""
    rows = [("parameter", "shape", "dtype", "sharding", "trained", "count")]
    total = trained = 0
    for path, leaf in tree.flatten(program.state["params"]).items():
        count, moves = int(np.prod(leaf.shape)), path in program.moving
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append(
            (path, shape, str(leaf.dtype), _axes(leaf), "yes" if moves else "no", f"{count:,}")
        )
        total, trained = total + count, trained + count * moves
    last = f"{total:,} parameters, {trained:,} trained"
    return "\n".join([_aligned(rows), last, _mesh(program)])


def batch(program: Program) -> str:
    """A line for each leaf of the global batch."""
    rows = [("batch", "shape", "dtype", "sharding")]
    for name, leaf in program.batch.items():
        rows.append((name, "x".join(map(str, leaf.shape)), str(leaf.dtype), _axes(leaf)))
    return _aligned(rows)


def memory_of(program: Program) -> str:
    """Bytes on one device; `slm_jax.planning.memory` says what is counted."""
    found = memory.of(program.job, program.mesh.abstract_mesh)
    sizes = found._asdict() | {"in all": found.total}
    rows = [("memory of one device", ""), *((k, _bytes(v)) for k, v in sizes.items())]
    return _aligned(rows)


def _mesh(program: Program) -> str:
    shape = " x ".join(f"{name} {size}" for name, size in program.mesh.shape.items())
    return f"mesh: {shape} on {program.mesh.devices.flat[0].device_kind}"


def _axes(leaf: jax.ShapeDtypeStruct) -> str:
    """Mesh axes of each dimension; those of one device divide nothing."""
    sharding: Any = leaf.sharding
    sizes: Mapping[str, int] = sharding.mesh.shape
    found = []
    for entry in (*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))):
        axes = (entry,) if isinstance(entry, str) else entry or ()
        found.append("+".join(axis for axis in axes if sizes[axis] > 1) or ".")
    return " ".join(found) if {*found} - {"."} else "whole"


def _bytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
