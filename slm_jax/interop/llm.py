"""Text LLMs from their published files: a Hugging Face folder (config.json and safetensors, one
file or several) or a GGUF file.

Files are memory-mapped, and each device's part of a parameter is put together from them by itself,
so the host holds no more than one parameter at a time, and reads what its devices need only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import gguf, gguf_config, hf_config, safetensors
from slm_jax.interop.families import (
    DERIVED,
    GGUF_TABLES,
    HF_TABLES,
    Place,
    Row,
    apply,
    layer_shape,
    places,
    stored_shape,
)
from slm_jax.nn import tree
from slm_jax.nn.backbone_config import BackboneConfig


class Source(NamedTuple):
    """A checkpoint that has been opened and not yet read."""

    config: BackboneConfig
    table: tuple[Row, ...]
    shapes: dict[str, tuple[int, ...]]
    tensor: Callable[[str], np.ndarray]


def llm_config(path: str | Path) -> BackboneConfig:
    """The sizes of a published text LLM.

    Args:
      path: a .gguf file, or a folder with config.json and *.safetensors.

    Raises:
      UserError: nothing there, damaged, or of an architecture that the backbone lacks.
    """
    return _open(Path(path)).config


def load_llm(
    path: str | Path, shardings: tree.Params | None = None, dtype: str = "float32"
) -> tuple[BackboneConfig, tree.Params]:
    """Reads a published text LLM.

    Args:
      path: a .gguf file, or a folder with config.json and *.safetensors.
      shardings: the tree of `Backbone` parameters with a `jax.sharding.Sharding` each; None puts
        everything on the default device. With several processes, each reads the same files and
        takes its own shards.
      dtype: what the weights are stored in, and the dtype of the returned configuration.

    Returns:
      The configuration, and the parameters of `Backbone(config)` without LoRA.

    Raises:
      UserError: naming the weights that are missing, unexpected or misshapen (before anything is
        loaded), another architecture, or a truncated file.
    """
    source = _open(Path(path))
    wanted = places(source.table, source.config)
    _check(source, wanted)
    members: dict[str, list[tuple[str, Place]]] = {}  # parameter -> its tensors, by layer
    for name, place in wanted.items():
        members.setdefault(place.target, []).append((name, place))
    where = None if shardings is None else tree.flatten(shardings)
    params = {
        target: _parameter(source, parts, where and where[target], np.dtype(jnp.dtype(dtype)))
        for target, parts in members.items()
    }
    return dataclasses.replace(source.config, dtype=dtype), tree.unflatten(params)


def _parameter(
    source: Source,
    parts: list[tuple[str, Place]],
    sharding: jax.sharding.Sharding | None,
    dtype: np.dtype,
) -> jax.Array:
    """One parameter on the devices, from its tensors: one, or one a layer in order."""
    place = parts[0][1]
    stacked = place.layer is not None
    shape = layer_shape(place.target, source.config)
    shape = (len(parts), *shape) if stacked else shape

    def weight(part: tuple[str, Place], index: tuple[slice, ...]) -> np.ndarray:
        name, place = part
        return apply(place.transform, source.tensor(name), source.config.head_dim)[index]

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = np.empty(np.broadcast_to(np.zeros((), dtype), shape)[index].shape, dtype)
        if not stacked:
            out[...] = weight(parts[0], index)
            return out
        for layer, part in zip(out, parts[index[0]], strict=True):
            layer[...] = weight(part, index[1:])
        return out

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)


def _check(source: Source, wanted: dict[str, Place]) -> None:
    """Every weight is there once with the shape that the configuration says."""
    shapes = {name: stored_shape(place, source.config) for name, place in wanted.items()}
    spare = {"lm_head.weight"} if source.config.tie_embeddings else set()
    tree.check_names(
        missing=[name for name in shapes if name not in source.shapes],
        unexpected=[
            name
            for name in source.shapes
            if name not in shapes and name not in spare and not name.endswith(DERIVED)
        ],
        misshapen=[
            f"{name} {source.shapes[name]}, wanted {shape}"
            for name, shape in shapes.items()
            if source.shapes.get(name, shape) != shape
        ],
    )


def _open(path: Path) -> Source:
    if path.is_dir():
        return _open_hf(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    raise UserError(
        f"{path} is no text LLM",
        "give a .gguf file, or a folder with config.json and *.safetensors",
    )


def _open_gguf(path: Path) -> Source:
    file = gguf.read(path)
    architecture, config = gguf_config.read_config(path, file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return Source(
        config, GGUF_TABLES[architecture], shapes, lambda name: file.tensors[name].dequantize()
    )


def _open_hf(folder: Path) -> Source:
    architecture, config = hf_config.read_config(folder / "config.json")
    tensors = {
        name: array
        for file in _safetensors_files(folder)
        for name, array in safetensors.read(file).items()
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    return Source(config, HF_TABLES[architecture], shapes, tensors.__getitem__)


def _safetensors_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error!r}", "download it again") from None
    return [folder / name for name in sorted(set(names))]
