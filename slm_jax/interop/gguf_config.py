"""The configuration of a decoder from GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop.families import GGUF_TABLES
from slm_jax.interop.gguf import GGUF
from slm_jax.interop.hf_config import NOT_SUPPORTED
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.rope import RopeScaling, inverse_frequencies


def read_config(path: Path, file: GGUF) -> tuple[str, BackboneConfig]:
    """Architecture and sizes.

    Raises:
      UserError: another architecture, or a trait that the backbone lacks.
    """
    architecture = file.metadata.get("general.architecture", "unnamed")
    if architecture not in GGUF_TABLES:
        raise UserError(
            f"{path} is of architecture {architecture}, known are {', '.join(GGUF_TABLES)}",
            NOT_SUPPORTED,
        )
    fields = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    if fields.get("expert_count"):
        raise UserError(f"{path} is a mixture of experts, which is not supported", NOT_SUPPORTED)
    try:
        return architecture, _config(path, architecture, fields, file)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}", "download it again") from None


def _config(path: Path, architecture: str, fields: dict[str, Any], file: GGUF) -> BackboneConfig:
    width, heads = fields["embedding_length"], fields["attention.head_count"]
    head_dim = fields.get("attention.key_length", width // heads)
    if fields.get("rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{path} rotates a part of each head only", NOT_SUPPORTED)
    theta = _decimal(fields.get("rope.freq_base", 10_000.0))
    return BackboneConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        width=width,
        layers=fields["block_count"],
        heads=heads,
        kv_heads=fields.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_width=fields["feed_forward_length"],
        rope_theta=theta,
        rope_scaling=_scaling(path, head_dim, theta, fields, file),
        norm_eps=_decimal(fields["attention.layer_norm_rms_epsilon"]),
        tie_embeddings="output.weight" not in file.tensors,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        window=fields.get("attention.sliding_window"),
        context_length=fields.get("context_length", 8192),
    )


def _scaling(
    path: Path, head_dim: int, theta: float, fields: dict[str, Any], file: GGUF
) -> RopeScaling | None:
    """Linear scaling is told by name, that of Llama 3 by a tensor of one divisor a frequency."""
    kind = fields.get("rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", _decimal(fields["rope.scaling.factor"]))
    if kind != "none":
        raise UserError(
            f"{path} scales its rotary embedding by {kind!r}; known are linear and llama3",
            "use a model without that scaling",
        )
    if "rope_freqs.weight" not in file.tensors:
        return None
    divisors = file.tensors["rope_freqs.weight"].dequantize()
    scaling = RopeScaling("llama3", _decimal(divisors.max()), 1.0, 4.0, 8192)  # as published
    ours = inverse_frequencies(head_dim, theta, None) / inverse_frequencies(
        head_dim, theta, scaling
    )
    if ours.shape != divisors.shape or not np.allclose(ours, divisors, rtol=1e-3):
        raise UserError(
            f"the rope_freqs of {path} are not those of a Llama 3", "load it from safetensors"
        )
    return scaling


def _decimal(number: float) -> float:
    """The number that was written down before it became an f32: 1e-5, not 9.99999974e-06."""
    return float(f"{float(number):.7g}")
