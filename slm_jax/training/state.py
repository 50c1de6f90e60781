"""The training state: one plain dict {"params", "opt", "step"}, born in its shardings.

With an average of the weights, it is under "ema", for those that move.

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
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from slm_jax.nn import tree
from slm_jax.training import partitioning, step

State = dict[str, Any]


class Skeleton(NamedTuple):
    """A model without its numbers."""

    graphdef: nnx.GraphDef
    params: tree.Params  # ShapeDtypeStructs with shardings


def skeleton(
    build: Callable[[], nnx.Module], rules: Mapping[str, Any], mesh: Mesh | AbstractMesh
) -> Skeleton:
    """Structure, shapes and placement of the model that `build` makes; runs no arithmetic."""
    return skeleton_of(nnx.eval_shape(build), rules, mesh)


def skeleton_of(
    module: nnx.Module, rules: Mapping[str, Any], mesh: Mesh | AbstractMesh
) -> Skeleton:
    """The same of a module that `nnx.eval_shape` returned."""
    graphdef, abstract = tree.pure_params(module)
    placed = partitioning.shardings(tree.logical_axes(module), abstract, rules, mesh)
    return Skeleton(graphdef, _with_shardings(abstract, placed))


def abstract_state(
    params: tree.Params,
    optimizer: optax.GradientTransformation,
    trainable: frozenset[str],
    averages: bool = False,
) -> State:
    """The whole state as ShapeDtypeStructs with shardings.

    Moments and the average live where their weights do; moments of another shape than the weight's
    (Adafactor's rows and columns) are small, and whole on every device.
    """
    moving, _ = step.split(params, trainable)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    whole = partitioning.replicated(mesh)
    opt = jax.eval_shape(optimizer.init, moving)
    placed = optax.tree_utils.tree_map_params(
        optimizer,
        lambda slot, weight: _beside(slot, weight, whole),
        opt,
        moving,
        transform_non_params=lambda _: whole,
        is_leaf=_is_masked,
    )
    state = {
        "params": params,
        "opt": _with_shardings(opt, placed),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    }
    return state | ({"ema": moving} if averages else {})


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
    state = {"params": params, "opt": opt, "step": start}
    if "ema" in abstract:  # a copy, because the step is given the buffers of both
        placed = shardings(abstract["ema"])
        state["ema"] = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=placed)(moving)
    return state


def averaged(state: State) -> tree.Params:
    """The parameters, with the average of those that have one."""
    return tree.unflatten(tree.flatten(state["params"]) | tree.flatten(state.get("ema", {})))


def _is_masked(slot: Any) -> bool:
    return isinstance(slot, optax.MaskedNode)


def _beside(slot: Any, weight: jax.ShapeDtypeStruct, whole: NamedSharding) -> Any:
    if _is_masked(slot):  # of a weight that this part of the optimizer does not move
        return slot
    return weight.sharding if slot.shape == weight.shape else whole


def _with_shardings(abstract: Any, placed: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        placed,
    )
