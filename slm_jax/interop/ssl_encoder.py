"""wav2vec 2.0, HuBERT and WavLM checkpoints in, from Hugging Face folders.

One table, our module -> module of transformers' Wav2Vec2Model, HubertModel and WavLMModel; `{i}`
counts convolutions and layers, and layers are stacked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop import safetensors
from slm_jax.nn.tree import check_names

REMEDY = (
    "give a folder with config.json and model.safetensors of a wav2vec 2.0, HuBERT or WavLM model"
)
FAMILIES = ("wav2vec2", "hubert", "wavlm")
_SAMPLE_RATE = 16_000

# Our field -> name in config.json. What a config.json leaves out has transformers' default there,
# which is ours too.
_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "pre_norm": "do_stable_layer_norm",
}
# Traits that would change the features, with the one value that is built here.
_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
_POSITION = "encoder.pos_conv_embed.conv"
_LAYER = "encoder.layers.{i}."
_MODULES = {
    "convs/{i}": "feature_extractor.conv_layers.{i}.conv",
    "convs/{i}/norm": "feature_extractor.conv_layers.{i}.layer_norm",
    "projection_norm": "feature_projection.layer_norm",
    "projection": "feature_projection.projection",
    "position": _POSITION,
    "norm": "encoder.layer_norm",
    "relative": "encoder.layers.0.attention.rel_attn_embed",
    "layers/attention": _LAYER + "attention",
    "layers/attention/q": _LAYER + "attention.q_proj",
    "layers/attention/k": _LAYER + "attention.k_proj",
    "layers/attention/v": _LAYER + "attention.v_proj",
    "layers/attention/o": _LAYER + "attention.out_proj",
    "layers/attention/gate": _LAYER + "attention.gru_rel_pos_linear",
    "layers/attention_norm": _LAYER + "layer_norm",
    "layers/up": _LAYER + "feed_forward.intermediate_dense",
    "layers/down": _LAYER + "feed_forward.output_dense",
    "layers/mlp_norm": _LAYER + "final_layer_norm",
}
_WORDS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "gate_scale": "gru_rel_pos_const",
}
_WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# Used in pretraining only, or behind the last layer: no features read them.
_UNUSED = re.compile(r"masked_spec_embed|adapter\..*|encoder\.layer_norm\.(weight|bias)")


def read_config(folder: Path) -> dict[str, Any]:
    """Keyword arguments of `SslConfig`, from config.json and preprocessor_config.json.

    Without the latter the audio is normalised, as transformers does by default.

    Raises:
      UserError: no config.json, another family, another sample rate, or a trait that the network
        lacks.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist", REMEDY)
    fields, audio = _json(path), _json(folder / "preprocessor_config.json")
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{path} is of a {family}, known are {', '.join(FAMILIES)}", REMEDY)
    found = [
        f"{name}={fields[name]}"
        for name in _FIXED
        if fields.get(name, _FIXED[name]) != _FIXED[name]
    ]
    if audio.get("sampling_rate", _SAMPLE_RATE) != _SAMPLE_RATE:
        found.append(f"sampling_rate={audio['sampling_rate']}")
    if found:
        raise UserError(f"{folder} sets {', '.join(found)}, which is not supported", REMEDY)
    config = {ours: fields[theirs] for ours, theirs in _FIELDS.items() if theirs in fields}
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if family == "wavlm":
        config["relative_buckets"] = fields.get("num_buckets", 320)
        config["relative_distance"] = fields.get("max_bucket_distance", 800)
    return config | {"normalise": audio.get("do_normalize", True)}


def read_weights(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Reads the weights of an encoder.

    Args:
      folder: holds config.json and one or several model*.safetensors.
      wanted: flat name -> shape of each weight; kernels [in, out] or [kernel, in, out], layers
        stacked on the first axis.

    Returns:
      Flat name -> float32 array of these shapes.

    Raises:
      UserError: no such file, or one that is damaged; or naming every tensor that is missing,
        unexpected or misshapen.
    """
    tensors = _fold(_tensors(folder, _json(folder / "config.json")["model_type"]))
    sources = {ours: _sources(ours, shape) for ours, shape in wanted.items()}
    shapes = {
        name: _stored_shape(ours, wanted[ours]) for ours, names in sources.items() for name in names
    }
    check_names(
        missing=[name for name in shapes if name not in tensors],
        unexpected=[n for n in tensors if n not in shapes and not _UNUSED.fullmatch(n)],
        misshapen=[
            f"{name} {tensors[name].shape}, wanted {shape}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    )
    weights = {}
    for ours, names in sources.items():
        arrays = [_ours(ours, tensors[name]) for name in names]
        weights[ours] = np.stack(arrays) if _stacked(ours) else arrays[0]
    return weights


def _stacked(ours: str) -> bool:
    return ours.startswith("layers/")


def _sources(ours: str, shape: tuple[int, ...]) -> list[str]:
    """The tensor of one of our weights, or those of all layers in order."""
    module, word = ours.rsplit("/", 1)
    index = re.search(r"/(\d+)", module)
    module = re.sub(r"/\d+", "/{i}", module)
    theirs = f"{_MODULES[module]}.{_WORDS[word]}"
    if _stacked(ours):
        return [theirs.replace("{i}", str(i)) for i in range(shape[0])]
    return [theirs.replace("{i}", index[1]) if index else theirs]


def _stored_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one tensor of a weight: [out, in], or [out, in, kernel] of a convolution."""
    shape = shape[1:] if _stacked(ours) else shape
    return shape[::-1] if ours.endswith("/kernel") else shape


def _ours(ours: str, tensor: np.ndarray) -> np.ndarray:
    tensor = np.asarray(tensor, np.float32)
    return tensor.T if ours.endswith("/kernel") else tensor


def _fold(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight norm to the weight it stands for (Salimans and Kingma 2016, arXiv 1602.07868, eq. 2,
    one scale a tap), and constants stored as [1, H, 1, 1] to [H]."""
    tensors = dict(tensors)
    for scale, direction in _WEIGHT_NORMS:
        scale, direction = f"{_POSITION}.{scale}", f"{_POSITION}.{direction}"
        if scale in tensors and direction in tensors:
            g, v = (np.asarray(tensors.pop(name), np.float64) for name in (scale, direction))
            norm = np.sqrt(np.sum(v**2, axis=(0, 1), keepdims=True))
            tensors[f"{_POSITION}.weight"] = g * v / norm
    for name, tensor in tensors.items():
        if name.endswith(".gru_rel_pos_const"):
            tensors[name] = tensor.reshape(-1)
    return tensors


def _tensors(folder: Path, family: str) -> dict[str, np.ndarray]:
    """The encoder's own; with the family's prefix in the names, what lacks it is a head's."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no model.safetensors", REMEDY)
    tensors = {name: array for file in files for name, array in safetensors.read(file).items()}
    prefix = f"{family}."
    own = {n.removeprefix(prefix): array for n, array in tensors.items() if n.startswith(prefix)}
    return own or tensors


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "download it again") from None
