"""Neural codec checkpoints in: config.json and safetensors, as transformers or `snac` write them.

What a format is made of stands in `codec_names`; here files are read, weight normalisation and
codebook statistics are folded into plain weights, and names are checked.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import safetensors

# Endings of two tensors that make one, and of that one: weight normalisation as
# torch.nn.utils.weight_norm and as its parametrization spell it, and Mimi's codebooks.
_HALVES = (
    ("weight_g", "weight_v", "weight"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1", "weight"),
    ("cluster_usage", "embed_sum", "embed"),
)
_FEWEST_USES = 1e-5  # MimiEuclideanCodebook's epsilon


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a weight of ours comes from.

    Attributes:
      name: foreign tensor; `{i}` counts `count` of them, which are stacked.
      kind: its layout. "conv": [out, in, k], "depthwise": [D, 1, k], "transposed": [in, out, k],
        "linear": [out, in] or [out, in, 1], "vector": [D] or [1, D, 1], "table": as ours.
      count: how many to stack, 0 for one alone.
    """

    name: str
    kind: Literal["conv", "depthwise", "transposed", "linear", "vector", "table"]
    count: int = 0

    @property
    def names(self) -> list[str]:
        return [self.name.replace("{i}", str(i)) for i in range(self.count)] or [self.name]


@dataclasses.dataclass(frozen=True)
class Format:
    """What a codec's folder holds.

    Attributes:
      name: of the codec, for messages.
      model_type: word of its config.json, "" if that has none.
      sizes: fields of config.json -> keyword arguments of the codec's configuration; raises
        ValueError for a trait that is not supported.
      table: those arguments -> flat name of ours -> where it comes from.
      ignored: pattern of foreign tensors that hold nothing to load.
    """

    name: str
    model_type: str
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]
    table: Callable[[Mapping[str, Any]], dict[str, Source]]
    ignored: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A codec in our names: keyword arguments of its configuration, flat name -> float32 array."""

    sizes: dict[str, Any]
    weights: dict[str, np.ndarray]


def read(folder: Path | str, form: Format) -> Checkpoint:
    """Reads a codec of any size.

    Args:
      folder: has config.json and one or several *.safetensors.
      form: of `codec_names`.

    Raises:
      UserError: no such files, unreadable ones, or ones that hold another model; every missing
        and unexpected tensor is named.
    """
    folder = Path(folder)
    remedy = f"point to a folder with config.json and the safetensors of a {form.name} model"
    fields = _fields(folder / "config.json", remedy)
    if form.model_type and fields.get("model_type") != form.model_type:
        raise UserError(
            f"{folder} holds a model of type {fields.get('model_type')}, not {form.model_type}",
            remedy,
        )
    try:
        sizes = form.sizes(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} is not of a known {form.name}: {error}", remedy
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors", remedy)
    tensors = fold({name: x for file in files for name, x in safetensors.read(file).items()})
    table = form.table(sizes)
    wanted = {name for source in table.values() for name in source.names}
    lone = _lone(tensors)
    missing = sorted(wanted - set(tensors) - {whole for whole, _ in lone.values()})
    missing += [half for _, half in lone.values()]
    unexpected = [
        name
        for name in tensors
        if name not in wanted and name not in lone and not re.fullmatch(form.ignored, name)
    ]
    if missing or unexpected:
        raise UserError(
            f"{folder} is not a {form.name} checkpoint: missing {missing}, unexpected {unexpected}",
            remedy,
        )
    return Checkpoint(sizes, {ours: _weight(source, tensors) for ours, source in table.items()})


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts plain weights in place of what they are stored as, where both halves are there.

    Weight normalisation (Salimans & Kingma 2016, arXiv 1602.07868): w = g v / |v|, a norm for
    each entry of the first axis. Codebooks kept as running sums: vector = sum / uses.
    """
    folded = dict(tensors)
    for name in tensors:
        for first, second, whole in _HALVES:
            stem = name.removesuffix(second)
            if stem == name or stem + first not in tensors:
                continue
            a, b = (np.asarray(folded.pop(stem + part), np.float32) for part in (first, second))
            if whole == "weight":
                norm = np.sqrt(np.sum(b**2, axis=tuple(range(1, b.ndim)), keepdims=True))
                folded[stem + whole] = a * (b / norm)
            else:
                folded[stem + whole] = b / np.maximum(a, _FEWEST_USES)[:, None]
    return folded


def _lone(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """Half without its other half -> the tensor that both would make, and the half that lacks."""
    return {
        name: (name.removesuffix(half) + whole, name.removesuffix(half) + other)
        for name in tensors
        for first, second, whole in _HALVES
        for half, other in ((first, second), (second, first))
        if name.endswith(half)
    }


def _weight(source: Source, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    arrays = [_layout(np.asarray(tensors[n], np.float32), source.kind) for n in source.names]
    return np.stack(arrays) if source.count else arrays[0]


def _layout(tensor: np.ndarray, kind: str) -> np.ndarray:
    """A foreign tensor as ours: kernels [k, in, out], transposed [in, k, out] or, depthwise,
    [k, D]; linear [in, out]."""
    if kind == "conv":
        return tensor.transpose(2, 1, 0)
    if kind == "transposed":
        return tensor.transpose(0, 2, 1)
    if kind == "depthwise":
        return tensor[:, 0].T
    if kind == "linear":
        return tensor.reshape(tensor.shape[:2]).T
    return tensor.reshape(-1) if kind == "vector" else tensor


def _fields(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", remedy) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "fetch the model again") from error
