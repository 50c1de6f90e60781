"""`config.json` of a Hugging Face decoder, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm_jax.errors import UserError
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.rope import RopeScaling

NOT_SUPPORTED = "use a model of the Llama, SmolLM2, Mistral, Qwen2 or Qwen3 family"
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def read_config(path: Path) -> tuple[str, BackboneConfig]:
    """Architecture and sizes from a config.json, as transformers 4 or 5 writes it.

    Raises:
      UserError: no such file, another architecture, or a trait that the backbone lacks.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist", "give a .gguf file, or a folder with config.json"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "download it again") from None
    architecture = (fields.get("architectures") or [fields.get("model_type", "unnamed")])[0]
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} is of architecture {architecture}, known are {', '.join(ARCHITECTURES)}",
            NOT_SUPPORTED,
        )
    return architecture, decoder_config(path, architecture, fields)


def decoder_config(path: Path, architecture: str, fields: dict[str, Any]) -> BackboneConfig:
    """The sizes of one decoder from its fields, which may be a part of a larger config.json.

    Raises:
      UserError: a trait that the backbone lacks, or a size that is not given.
    """
    _refuse(path, fields)
    try:
        return _config(path, architecture, fields)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}", "download it again") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}", NOT_SUPPORTED) from None


def _config(path: Path, architecture: str, fields: dict[str, Any]) -> BackboneConfig:
    heads = fields["num_attention_heads"]
    theta, scaling = _rope(path, fields)
    # Qwen files carry a sliding_window that is not in use.
    window = fields.get("sliding_window") if architecture == "MistralForCausalLM" else None
    return BackboneConfig(
        vocab_size=fields["vocab_size"],
        width=fields["hidden_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        mlp_width=fields["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields["rms_norm_eps"],
        tie_embeddings=fields.get("tie_word_embeddings", False),
        qkv_bias=architecture == "Qwen2ForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        window=window,
        context_length=fields.get("max_position_embeddings", 8192),
    )


def _refuse(path: Path, fields: dict[str, Any]) -> None:
    """Traits that would change the logits and that the backbone does not have."""
    found = [
        name for name in ("attention_bias", "mlp_bias", "use_sliding_window") if fields.get(name)
    ]
    if fields.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act={fields['hidden_act']}")
    if fields.get("partial_rotary_factor", 1.0) != 1.0:
        found.append("partial_rotary_factor")
    if "quantization_config" in fields:
        found.append("quantization_config")
    if found:
        raise UserError(f"{path} sets {', '.join(found)}, which is not supported", NOT_SUPPORTED)


def _rope(path: Path, fields: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope["factor"])
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    raise UserError(
        f"{path} scales its rotary embedding by {kind!r}; known are linear and llama3",
        "use a model without that scaling",
    )


def architecture_of(config: BackboneConfig) -> str:
    """The published architecture that has the traits of `config`."""
    if config.qk_norm and config.qkv_bias:
        raise UserError(
            "no published architecture has both qkv_bias and qk_norm", "export one without"
        )
    if (config.qk_norm or config.qkv_bias) and config.window is not None:
        raise UserError("a Qwen with a sliding window is not exported", "set window to None")
    if config.qk_norm:
        return "Qwen3ForCausalLM"
    if config.qkv_bias:
        return "Qwen2ForCausalLM"
    return "LlamaForCausalLM" if config.window is None else "MistralForCausalLM"


def config_json(config: BackboneConfig, dtype: str) -> dict[str, Any]:
    """What `read_config` reads back, in the form that transformers 4 and 5 both take."""
    architecture = architecture_of(config)
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
    }
    if config.window is not None or architecture == "MistralForCausalLM":
        fields["sliding_window"] = config.window
    scaling = config.rope_scaling
    if scaling is not None:
        fields["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        fields["rope_scaling"] |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return fields
