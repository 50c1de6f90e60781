"""Parameters as a plain nested dict of arrays, and the way from modules to it and back.

Modules are built once, split with `pure_params`, and put together again inside pure functions with
`merge`. Keys are strings; a path such as "layers/attention/q/kernel" names one array everywhere:
in checkpoints, import tables, partitioning and optimizer masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from slm_jax.errors import UserError

Params = dict[str, Any]


def pure_params(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Splits a (concrete or `nnx.eval_shape`d) module into static structure and arrays."""
    graphdef, state = nnx.split(module)
    return graphdef, _string_keys(nnx.to_pure_dict(state))


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The module that `pure_params` split; cheap, meant to be called inside jit."""
    return nnx.merge(graphdef, _native_keys(params))


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def logical_axes(module: nnx.Module) -> Params:
    """The tree of `pure_params(module)` with a tuple of logical axis names (or None) per array.

    Building blocks name the axes of one layer; axes that stacking put in front are "layers".
    """
    _, state = nnx.split(module)
    axes = {}
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata().get("axes")
        ndim = len(variable.shape)
        if names is None:
            names = (None,) * ndim
        axes["/".join(map(str, path))] = ("layers",) * (ndim - len(names)) + tuple(names)
    return unflatten(axes)


def load_flat(target: Params, flat: Mapping[str, Any], strict: bool = True) -> Params:
    """Puts named arrays where `target` (concrete or abstract) has its own.

    Args:
      target: nested dict of arrays or ShapeDtypeStructs; gives names and shapes.
      flat: path -> array.
      strict: if False, `target` keeps its own value where `flat` has none (it must be concrete),
        and names that `target` lacks are passed over; shapes must agree all the same.

    Raises:
      UserError: naming every missing, unexpected and misshapen weight.
    """
    wanted = flatten(target)
    missing = [name for name in wanted if name not in flat] if strict else []
    unexpected = [name for name in flat if name not in wanted] if strict else []
    misshapen = [
        f"{name} {tuple(flat[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in flat and tuple(flat[name].shape) != tuple(value.shape)
    ]
    check_names(missing=missing, unexpected=unexpected, misshapen=misshapen)
    return unflatten({name: flat.get(name, value) for name, value in wanted.items()})


def check_names(**problems: list[str]) -> None:
    """Raises one UserError naming every weight of every non-empty list of problems."""
    found = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            "the weights do not fit the model: " + "; ".join(found),
            "use the weights and the configuration of one and the same model",
        )


def _string_keys(tree: Mapping[Any, Any]) -> Params:
    return {
        str(key): _string_keys(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }


def _native_keys(tree: Params) -> dict[Any, Any]:
    """Undoes `_string_keys`: `nnx.List` numbers its children, and sorts them as numbers."""
    return {
        int(key) if key.isdigit() else key: _native_keys(value)
        if isinstance(value, Mapping)
        else value
        for key, value in tree.items()
    }
