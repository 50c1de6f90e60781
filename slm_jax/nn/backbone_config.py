"""Sizes and traits of a decoder; apart from its network, so that import tables can speak of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm_jax.nn.remat import Remat
from slm_jax.nn.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Sizes and family traits of a decoder, in the field's terms.

    Attributes:
      vocab_size: text ids V; 0 for a decoder that is given vectors alone: no table and no head.
      width: residual width D.
      layers: number of blocks.
      heads, kv_heads: query heads H and key/value heads; H is a multiple of kv_heads.
      head_dim: width of one head; D / H unless the family says otherwise (Qwen3).
      mlp_width: inner width of the gated MLP.
      rope_theta, rope_scaling: rotary base and how it is stretched.
      norm_eps: epsilon of every RMSNorm.
      tie_embeddings: the output head is the embedding table (Llama 3.2, SmolLM2, small Qwens).
      qkv_bias: q, k and v have biases (Qwen2).
      qk_norm: RMSNorm over each q and k head (Qwen3).
      window: sliding window in positions, None for full causal attention (Mistral 7B v0.1).
      context_length: positions the model is made for; written into exports, not enforced.
      dtype: what activations are computed in; weights keep their own dtype.
      lora_rank: rank of a low-rank update on every projection of the blocks; 0 for none.
      lora_alpha: the update is scaled by lora_alpha / lora_rank.
      dropout: share of the embedded columns, and of what each block's attention and MLP add to
        them, that is zero in a training step.
      remat: what the backward pass computes again (`slm_jax.nn.remat`).
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    context_length: int = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    dropout: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embedding")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
