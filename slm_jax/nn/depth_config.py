"""Sizes and traits of a depth transformer; apart from its network, as `backbone_config`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm_jax.nn.remat import Remat
from slm_jax.nn.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """Sizes and traits of a depth transformer.

    A step is one position of its sequence. Below, e_k is the vector of the row before row k, and
    `in` a linear from the backbone's width.

    Attributes:
      width: residual width W.
      layers: number of blocks.
      heads, kv_heads: query heads and key/value heads; heads is a multiple of kv_heads.
      head_dim: width of one head.
      mlp_width: inner width of the gated MLP.
      norm_eps: epsilon of every RMSNorm.
      condition: what the steps read.
        "previous": step k reads in_k(hidden) + e_k (Moshi, arXiv:2410.00037 §3.4.3).
        "prefix": the first step reads in(hidden), later ones e_0, e_1... (CSM, Voila).
        "cumsum": as "prefix", with the running sums e_0, e_0 + e_1... (`OmniAudioHead` of
          Baichuan-Omni-1.5).
        "slice": hidden is cut into K equal parts and step k reads in_k(part k) + e_k (MegaByte,
          arXiv:2305.07185; `MegaByteModel` of UniAudio).
      per_step: each step has its own kernels in attention and MLP, and with "previous" and "slice"
        its own `in` (Moshi); norms are shared.
      rope_theta, rope_scaling: rotary positions over the steps (CSM); theta 0 for no positions
        (Moshi), where causality and the rows' own tables and heads tell the steps apart.
      final_norm: an RMSNorm before the heads (all but Moshi).
      shared_tables: vectors of ids come from the backbone's tables and go through `in` too (CSM).
      dropout, remat: as in `BackboneConfig`.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float = 1e-5
    condition: Literal["previous", "prefix", "cumsum", "slice"] = "previous"
    per_step: bool = False
    rope_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    final_norm: bool = True
    shared_tables: bool = False
    dropout: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.rope_theta < 0:
            raise ValueError(f"rope_theta must be positive, or 0 for none, got {self.rope_theta}")
        if self.rope_theta and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embedding")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.rope_scaling is not None and not self.rope_theta:
            raise ValueError("rope_scaling needs rope_theta")
        if self.condition == "slice" and self.shared_tables:
            raise ValueError("condition slice has tables of its own: a part of hidden is narrower")
