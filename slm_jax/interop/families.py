"""How published decoders name and lay out their weights: one table per family.

A row says: the tensor of this name, for each layer where it has a {}, goes to that path of the
backbone, transformed so.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from slm_jax.nn.backbone_config import BackboneConfig


class Transform(enum.Enum):
    """How a stored tensor becomes ours."""

    COPY = "the same array"
    TRANSPOSE = "[out, in] -> [in, out]"
    INTERLEAVED = "TRANSPOSE, and heads from rotating pairs (2i, 2i+1) to pairs (i, i + h/2)"


class Row(NamedTuple):
    """A published name (with {} for the layer number), our path, and what lies between."""

    source: str
    target: str
    transform: Transform = Transform.TRANSPOSE


class Place(NamedTuple):
    """Where one stored tensor goes: a path, a layer of it (None if not stacked), a transform."""

    target: str
    layer: int | None
    transform: Transform


# The axes of one layer of every parameter of `slm_jax.models.backbone.Backbone`.
AXES = {
    "embedding/embedding": ("vocab", "embed"),
    "norm/scale": ("embed",),
    "head/kernel": ("embed", "vocab"),
    "layers/attention_norm/scale": ("embed",),
    "layers/mlp_norm/scale": ("embed",),
    "layers/attention/q/kernel": ("embed", "heads"),
    "layers/attention/k/kernel": ("embed", "kv_heads"),
    "layers/attention/v/kernel": ("embed", "kv_heads"),
    "layers/attention/o/kernel": ("heads", "embed"),
    "layers/attention/q/bias": ("heads",),
    "layers/attention/k/bias": ("kv_heads",),
    "layers/attention/v/bias": ("kv_heads",),
    "layers/attention/q_norm/scale": ("head_dim",),
    "layers/attention/k_norm/scale": ("head_dim",),
    "layers/mlp/gate/kernel": ("embed", "mlp"),
    "layers/mlp/up/kernel": ("embed", "mlp"),
    "layers/mlp/down/kernel": ("mlp", "embed"),
}

# Llama 2 and 3, SmolLM2, Mistral: LlamaForCausalLM and MistralForCausalLM of transformers.
LLAMA = (
    Row("model.embed_tokens.weight", "embedding/embedding", Transform.COPY),
    Row("model.norm.weight", "norm/scale", Transform.COPY),
    Row("lm_head.weight", "head/kernel"),
    Row("model.layers.{}.input_layernorm.weight", "layers/attention_norm/scale", Transform.COPY),
    Row("model.layers.{}.post_attention_layernorm.weight", "layers/mlp_norm/scale", Transform.COPY),
    Row("model.layers.{}.self_attn.q_proj.weight", "layers/attention/q/kernel"),
    Row("model.layers.{}.self_attn.k_proj.weight", "layers/attention/k/kernel"),
    Row("model.layers.{}.self_attn.v_proj.weight", "layers/attention/v/kernel"),
    Row("model.layers.{}.self_attn.o_proj.weight", "layers/attention/o/kernel"),
    Row("model.layers.{}.mlp.gate_proj.weight", "layers/mlp/gate/kernel"),
    Row("model.layers.{}.mlp.up_proj.weight", "layers/mlp/up/kernel"),
    Row("model.layers.{}.mlp.down_proj.weight", "layers/mlp/down/kernel"),
)
QWEN2 = (
    *LLAMA,
    Row("model.layers.{}.self_attn.q_proj.bias", "layers/attention/q/bias", Transform.COPY),
    Row("model.layers.{}.self_attn.k_proj.bias", "layers/attention/k/bias", Transform.COPY),
    Row("model.layers.{}.self_attn.v_proj.bias", "layers/attention/v/bias", Transform.COPY),
)
QWEN3 = (
    *LLAMA,
    Row("model.layers.{}.self_attn.q_norm.weight", "layers/attention/q_norm/scale", Transform.COPY),
    Row("model.layers.{}.self_attn.k_norm.weight", "layers/attention/k_norm/scale", Transform.COPY),
)
HF_TABLES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}

# GGUF. The architecture "llama" (Llama, SmolLM2, Mistral) stores q and k for interleaved rotary
# embedding, the Qwens keep the halves.
_GGUF_SHARED = (
    Row("token_embd.weight", "embedding/embedding", Transform.COPY),
    Row("output_norm.weight", "norm/scale", Transform.COPY),
    Row("output.weight", "head/kernel"),
    Row("blk.{}.attn_norm.weight", "layers/attention_norm/scale", Transform.COPY),
    Row("blk.{}.ffn_norm.weight", "layers/mlp_norm/scale", Transform.COPY),
    Row("blk.{}.attn_v.weight", "layers/attention/v/kernel"),
    Row("blk.{}.attn_output.weight", "layers/attention/o/kernel"),
    Row("blk.{}.ffn_gate.weight", "layers/mlp/gate/kernel"),
    Row("blk.{}.ffn_up.weight", "layers/mlp/up/kernel"),
    Row("blk.{}.ffn_down.weight", "layers/mlp/down/kernel"),
)
GGUF_LLAMA = (
    *_GGUF_SHARED,
    Row("blk.{}.attn_q.weight", "layers/attention/q/kernel", Transform.INTERLEAVED),
    Row("blk.{}.attn_k.weight", "layers/attention/k/kernel", Transform.INTERLEAVED),
)
_GGUF_QWEN = (
    *_GGUF_SHARED,
    Row("blk.{}.attn_q.weight", "layers/attention/q/kernel"),
    Row("blk.{}.attn_k.weight", "layers/attention/k/kernel"),
)
GGUF_QWEN2 = (
    *_GGUF_QWEN,
    Row("blk.{}.attn_q.bias", "layers/attention/q/bias", Transform.COPY),
    Row("blk.{}.attn_k.bias", "layers/attention/k/bias", Transform.COPY),
    Row("blk.{}.attn_v.bias", "layers/attention/v/bias", Transform.COPY),
)
GGUF_QWEN3 = (
    *_GGUF_QWEN,
    Row("blk.{}.attn_q_norm.weight", "layers/attention/q_norm/scale", Transform.COPY),
    Row("blk.{}.attn_k_norm.weight", "layers/attention/k_norm/scale", Transform.COPY),
)
GGUF_TABLES = {"llama": GGUF_LLAMA, "qwen2": GGUF_QWEN2, "qwen3": GGUF_QWEN3}

# Stored beside the weights and computed from the configuration here.
DERIVED = ("rotary_emb.inv_freq", "rope_freqs.weight")


def places(table: tuple[Row, ...], config: BackboneConfig) -> dict[str, Place]:
    """Every tensor that a checkpoint of this configuration holds -> where it goes."""
    result = {}
    for source, target, transform in table:
        if target == "head/kernel" and config.tie_embeddings:
            continue
        if "{}" not in source:
            result[source] = Place(target, None, transform)
            continue
        for layer in range(config.layers):
            result[source.format(layer)] = Place(target, layer, transform)
    return result


def layer_shape(target: str, config: BackboneConfig) -> tuple[int, ...]:
    """The shape of one layer of a parameter."""
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.width,
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "head_dim": config.head_dim,
        "mlp": config.mlp_width,
    }
    return tuple(sizes[axis] for axis in AXES[target])


def stored_shape(place: Place, config: BackboneConfig) -> tuple[int, ...]:
    """The shape of the tensor that goes to `place`."""
    ours = layer_shape(place.target, config)
    return ours if place.transform is Transform.COPY else ours[::-1]


def apply(transform: Transform, stored: np.ndarray, head_dim: int) -> np.ndarray:
    """A stored tensor as we lay it out; a view where possible."""
    if transform is Transform.COPY:
        return stored
    if transform is Transform.INTERLEAVED:
        pairs = stored.reshape(-1, head_dim // 2, 2, stored.shape[-1])
        stored = pairs.swapaxes(1, 2).reshape(stored.shape)
    return stored.T
