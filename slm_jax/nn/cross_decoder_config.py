"""Sizes of a decoder with cross-attention; apart from its network, as for `backbone_config`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm_jax.nn.remat import Remat


@dataclasses.dataclass(frozen=True)
class CrossDecoderConfig:
    """Sizes of a decoder that reads a memory beside its own columns.

    Attributes:
      width: residual width D.
      layers: number of blocks.
      heads: H, of self- and of cross-attention; a head is D / H wide.
      mlp_width: inner width of the MLP.
      memory_width: width D' of the memory that cross-attention reads.
      dtype: what activations are computed in; weights keep their own dtype.
      dropout, remat: as in `BackboneConfig`.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    memory_width: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_width", "memory_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.width % 2 or self.width < 4:
            raise ValueError(f"width={self.width} must be even, and 4 or more, for sinusoids")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads
