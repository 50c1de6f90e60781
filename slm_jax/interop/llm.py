"""Text LLMs from their published files: a Hugging Face folder (config.json and safetensors, one
file or several) or a GGUF file.

Weights go from the file into their slice of the stacked parameter on the devices, one tensor at a
time, so the host holds no more than the file that is being read, however large the model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
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
    tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]


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
    where = None if shardings is None else tree.flatten(shardings)
    params = {}
    for target, layer, _ in wanted.values():
        if target not in params:
            shape = layer_shape(target, source.config)
            stacked = shape if layer is None else (source.config.layers, *shape)
            device = None if where is None else where[target]
            params[target] = jnp.zeros(stacked, dtype, device=device)
    for name, stored in source.tensors():
        if name in wanted:
            target, layer, transform = wanted[name]
            weight = apply(transform, stored, source.config.head_dim)
            params[target] = _put(params[target], weight, layer)
    return dataclasses.replace(source.config, dtype=dtype), tree.unflatten(params)


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


def _put(stacked: jax.Array, weight: np.ndarray, layer: int | None) -> jax.Array:
    """`stacked` with `weight` as the whole of it, or as one layer; `stacked` is given up.

    Each device receives its own part of the weight only.
    """
    sharding = stacked.sharding
    if layer is not None and isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
        sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
    parts = jax.make_array_from_callback(
        weight.shape, sharding, lambda index: np.ascontiguousarray(weight[index])
    )
    return _write(stacked.sharding)(stacked, parts, None if layer is None else np.int32(layer))


@functools.lru_cache
def _write(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    def write(stacked: jax.Array, part: jax.Array, layer: jax.Array | None) -> jax.Array:
        at = stacked.at[...] if layer is None else stacked.at[layer]
        return at.set(part.astype(stacked.dtype))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


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

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        return ((name, tensor.dequantize()) for name, tensor in file.tensors.items())

    return Source(config, GGUF_TABLES[architecture], shapes, tensors)


def _open_hf(folder: Path) -> Source:
    architecture, config = hf_config.read_config(folder / "config.json")
    files = _safetensors_files(folder)
    shapes = {
        name: entry.shape for file in files for name, entry in safetensors.read_header(file).items()
    }

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for file in files:
            yield from safetensors.read(file).items()

    return Source(config, HF_TABLES[architecture], shapes, tensors)


def _safetensors_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {error!r}", "download it again") from None
    return [folder / name for name in sorted(set(names))]
