"""A backbone back into a Hugging Face folder: config.json and safetensors, LoRA merged."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import safetensors
from slm_jax.interop.families import HF_TABLES, Place, apply, places, stored_shape
from slm_jax.interop.hf_config import architecture_of, config_json
from slm_jax.nn import lora, tree
from slm_jax.nn.backbone_config import BackboneConfig


class Tokenizer(Protocol):
    """What a tokenizer must give to be exported; `slm_jax.tokenizers.text.TextTokenizer` does."""

    pieces: list[str]
    bos_id: int
    eos_id: int
    pad_id: int

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        ...


def export_llm(
    config: BackboneConfig,
    params: tree.Params,
    folder: str | Path,
    *,
    dtype: str = "bfloat16",
    tokenizer: Tokenizer | None = None,
    extra: tree.Params | None = None,
    texts: Mapping[str, str] | None = None,
    file_bytes: int = 5_000_000_000,
) -> None:
    """Writes what `transformers.AutoModelForCausalLM.from_pretrained(folder)` loads.

    Weights leave the devices one layer at a time.

    Args:
      config: sizes of the backbone; with lora_rank > 0 the updates are merged into the kernels.
      params: the parameters of `Backbone(config)`.
      folder: made by this call; it appears under its name only when it is whole.
      dtype: "bfloat16", "float16" or "float32".
      tokenizer: written beside, as tokenizer.json.
      extra: further parameters (a speech model's other parts), written under their own paths, in
        f32, as speech.safetensors; `transformers` passes over them.
      texts: further files to write into the folder, name -> content.
      file_bytes: most bytes in one file.

    Raises:
      UserError: the folder exists, the parameters are not of that configuration, or no published
        architecture has its traits.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already", "give the name of a folder to make")
    flat = tree.flatten(lora.merged(params, config.lora_alpha, config.lora_rank))
    wanted = places(HF_TABLES[architecture_of(config)], config)
    targets = {place.target for place in wanted.values()}
    tree.check_names(
        missing=sorted(targets - flat.keys()), unexpected=sorted(flat.keys() - targets)
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        _write_weights(partial, config, flat, wanted, np.dtype(jnp.dtype(dtype)), file_bytes)
        fields = config_json(config, dtype)
        if tokenizer is not None:
            fields |= _write_tokenizer(partial, tokenizer)
        _write_json(partial / "config.json", fields)
        if extra:
            arrays = {name: np.asarray(x, np.float32) for name, x in tree.flatten(extra).items()}
            entries = {name: (array.dtype, array.shape) for name, array in arrays.items()}
            safetensors.write(partial / "speech.safetensors", entries, arrays.values())
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
    folder: Path,
    config: BackboneConfig,
    flat: dict[str, jax.Array],
    wanted: dict[str, Place],
    dtype: np.dtype,
    file_bytes: int,
) -> None:
    shapes = {name: stored_shape(place, config) for name, place in wanted.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    files = _split(sizes, file_bytes)

    def arrays(names: list[str]) -> Iterator[np.ndarray]:
        for name in names:
            target, layer, transform = wanted[name]
            weight = np.asarray(flat[target] if layer is None else flat[target][layer])
            yield apply(transform, weight, config.head_dim).astype(dtype)  # its own inverse

    single = len(files) == 1
    index = {}
    for number, names in enumerate(files, 1):
        part = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path = folder / ("model.safetensors" if single else part)
        entries = {name: (dtype, shapes[name]) for name in names}
        safetensors.write(path, entries, arrays(names), {"format": "pt"})
        index |= dict.fromkeys(names, path.name)
    if not single:
        total = {"total_size": sum(sizes.values())}
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": total, "weight_map": index}
        )


def _split(sizes: dict[str, int], file_bytes: int) -> list[list[str]]:
    """Names in order, cut where the next would exceed `file_bytes`."""
    files: list[list[str]] = [[]]
    room = file_bytes
    for name, size in sizes.items():
        if files[-1] and size > room:
            files.append([])
            room = file_bytes
        files[-1].append(name)
        room -= size
    return files


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Writes the tokenizer's files; returns its part of config.json."""
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    tokens = {f"{role}_token": tokenizer.pieces[index] for role, index in ids.items()}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | tokens
    )
    return {f"{role}_token_id": index for role, index in ids.items()}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
