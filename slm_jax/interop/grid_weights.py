"""Published models over grids: tables that say which tensors make up the parameters of a `GridLM`.

A table is a list of `Row`. Names and shapes are checked against the parameters of the model that
is to receive them, so a layout or a size that differs from what is published is found before
anything is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import families, safetensors
from slm_jax.nn import tree

# What a configuration chooses for itself, whatever the published model.
_CHOSEN = {"dtype", "dropout", "remat", "lora_rank", "lora_alpha", "context_length"}


class Row(NamedTuple):
    """A parameter, and the published tensors that it is made of.

    Kernels are published as [out, in] and are transposed, after the choice of rows.

    Attributes:
      ours: path of the parameter.
      theirs: name of the tensor. With {layer} and {step} it stands for as many as the parameter
        has, which are stacked, layers before steps.
      rows: of the tensor's first axis, in our order; -1 for zeros.
      total: how many the tensor has; 0 to take all as they are.
    """

    ours: str
    theirs: str
    rows: Sequence[int] = ()
    total: int = 0

    def names(self, shape: Sequence[int]) -> list[str]:
        """The tensors of a parameter of that shape."""
        axes = [axis for axis in ("layer", "step") if f"{{{axis}}}" in self.theirs]
        counts = [range(count) for count in shape[: len(axes)]]
        return [
            self.theirs.format_map(dict(zip(axes, places, strict=True)))
            for places in itertools.product(*counts)
        ]

    def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of each tensor of a parameter of that shape."""
        part = tuple(shape[sum(axis in self.theirs for axis in ("{layer}", "{step}")) :])
        if self.ours.endswith("/kernel"):
            part = part[::-1]
        return (self.total, *part[1:]) if self.total else part

    def turned(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor as we lay it out."""
        if self.total:
            rows = np.asarray(self.rows)
            tensor = tensor[rows]
            tensor[rows < 0] = 0
        return tensor.T if self.ours.endswith("/kernel") else tensor


class Fields(dict[str, Any]):
    """An object of a JSON file, which says so where a field is missing."""

    def __init__(self, path: Path, fields: Mapping[str, Any]):
        super().__init__(fields)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path} lacks {name!r}", "download it again")


def decoder(ours: str, theirs: str, table: Sequence[families.Row]) -> Iterator[Row]:
    """The layers and the last norm of a text LLM's table (`families`), under other prefixes."""
    for source, target, _ in table:
        if target.startswith(("layers/", "norm/")):
            name = theirs + source.removeprefix("model.").replace("{}", "{layer}")
            yield Row(ours + target, name)


def fields(folder: Path, kind: str) -> Fields:
    """What config.json of a published model says.

    Args:
      folder: has the file.
      kind: the `model_type` that it must name.

    Raises:
      UserError: no such file, not JSON, or another model.
    """
    path, remedy = folder / "config.json", f"point to the folder of a published {kind}"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, object_hook=lambda fields: Fields(path, fields))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", remedy) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "download it again") from None
    if found.get("model_type", kind) != kind:
        raise UserError(f"{folder} holds a model of type {found['model_type']}, not {kind}", remedy)
    return found


def tensors(folder: Path, pattern: str = "*.safetensors") -> dict[str, np.ndarray]:
    """All arrays of the files of a folder, memory-mapped.

    Raises:
      UserError: there is none, or a file is truncated.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} holds no {pattern}", "download the model's weights")
    return {name: array for file in files for name, array in safetensors.read(file).items()}


def agree(name: str, published: Any, wanted: Any) -> None:
    """Compares two configurations of a part of a model, in all that its weights depend on.

    Raises:
      UserError: naming the fields that differ.
    """
    differing = [
        f"{field.name} {getattr(published, field.name)}, wanted {getattr(wanted, field.name)}"
        for field in dataclasses.fields(published)
        if field.name not in _CHOSEN
        and getattr(published, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise UserError(
            f"the published {name} is not that of the system: {'; '.join(differing)}",
            "load it into the system that describes it",
        )


def check(table: Sequence[Row], shapes: Mapping[str, tuple[int, ...]], like: tree.Params) -> None:
    """Compares the tensors of a checkpoint, name -> shape, with those that `like` is made of.

    Raises:
      UserError: naming those that are missing, unexpected or misshapen.
    """
    params = tree.flatten(like)
    wanted = {
        name: row.stored(params[row.ours].shape)
        for row in table
        if row.ours in params
        for name in row.names(params[row.ours].shape)
    }
    made = {row.ours for row in table}
    tree.check_names(
        missing=[name for name in wanted if name not in shapes]
        + [f"what makes {path}" for path in params if path not in made],
        unexpected=[name for name in shapes if name not in wanted],
        misshapen=[
            f"{name} {tuple(shapes[name])}, wanted {shape}"
            for name, shape in wanted.items()
            if tuple(shapes.get(name, shape)) != shape
        ],
    )


def load(
    table: Sequence[Row], tensors: Mapping[str, np.ndarray], like: tree.Params, dtype: str
) -> tree.Params:
    """The parameters `like` (abstract or concrete) from published tensors, one at a time.

    Raises:
      UserError: as `check`.
    """
    check(table, {name: array.shape for name, array in tensors.items()}, like)
    params, flat = tree.flatten(like), {}
    for row in table:
        shape = params[row.ours].shape
        parts = [row.turned(tensors[name]) for name in row.names(shape)]
        flat[row.ours] = jnp.asarray(np.stack(parts).reshape(shape), dtype)
    return tree.load_flat(like, flat)
