"""The training state: one plain dict {"params", "opt", "step"}, born in its shardings.

Where parameters come from, first match: the newest checkpoint of the run, else the text LLM for
the backbone and random numbers for the rest. A restored state never meets an initial one in memory:
what is not used is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from slm_jax.nn import tree
from slm_jax.training import partitioning, step

State = dict[str, Any]


class Skeleton(NamedTuple):
    """A model without its numbers."""

    graphdef: nnx.GraphDef
    params: tree.Params  # ShapeDtypeStructs with shardings


def skeleton(build: Callable[[], nnx.Module], rules: Mapping[str, Any], mesh: Mesh) -> Skeleton:
    """Structure, shapes and placement of the model that `build` makes; runs no arithmetic."""
    module = nnx.eval_shape(build)
    graphdef, abstract = tree.pure_params(module)
    placed = partitioning.shardings(tree.logical_axes(module), abstract, rules, mesh)
    return Skeleton(graphdef, _with_shardings(abstract, placed))


def abstract_state(
    params: tree.Params, optimizer: optax.GradientTransformation, trainable: frozenset[str]
) -> State:
    """The whole state as ShapeDtypeStructs with shardings; moments live where their weights do."""
    moving, _ = step.split(params, trainable)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    whole = partitioning.replicated(mesh)
    opt = jax.eval_shape(optimizer.init, moving)
    placed = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, weight: weight.sharding,
        opt,
        moving,
        transform_non_params=lambda _: whole,
    )
    return {
        "params": params,
        "opt": _with_shardings(opt, placed),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    }


def shardings(abstract: Any) -> Any:
    """The tree of NamedShardings of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def initial_params(build: Callable[[], nnx.Module], partial: tree.Params) -> tree.Params:
    """Parameters for step 0.

    Args:
      build: makes the model with random numbers; only those that `partial` lacks are computed.
      partial: `skeleton(...).params`, with arrays in place of some (a text LLM's weights).
    """
    flat = tree.flatten(partial)
    missing = {
        path: leaf.sharding for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)
    }

    def random() -> dict[str, jax.Array]:
        made = tree.flatten(tree.pure_params(build())[1])
        return {path: made[path] for path in missing}

    return tree.unflatten(flat | jax.jit(random, out_shardings=missing)())


def place(value: np.ndarray, sharding: NamedSharding, dtype: Any) -> jax.Array:
    """A host array, equal on all processes, as a global array; each device takes its own part."""
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: np.asarray(value[index], dtype)
    )


def initial_state(
    params: tree.Params,
    optimizer: optax.GradientTransformation,
    trainable: frozenset[str],
    abstract: State,
) -> State:
    """Step 0 from parameters, which it takes over; `abstract` is from `abstract_state`."""
    moving, _ = step.split(params, trainable)
    opt = jax.jit(optimizer.init, out_shardings=shardings(abstract["opt"]))(moving)
    start = place(np.zeros((), np.int32), abstract["step"].sharding, np.int32)
    return {"params": params, "opt": opt, "step": start}


def _with_shardings(abstract: Any, placed: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        placed,
    )
