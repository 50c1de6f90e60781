"""A trunk that sees all columns, told which level it fills in (VALL-E's stages)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.models.backbone import Attention, BackboneConfig, GatedMLP
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.layers import RMSNorm, dropout, dropout_keys, scan_layers, stack
from slm_jax.nn.placement import constrain


class StageNorm(nnx.Module):
    """RMSNorm whose scale and shift depend on the stage (VALL-E's adaptive norm, §4.2.2)."""

    def __init__(self, width: int, stages: int, epsilon: float):
        self.norm = RMSNorm(width, epsilon=epsilon)
        self.scale = nnx.Param(jnp.ones((stages, width)), axes=(None, "embed"))
        self.shift = nnx.Param(jnp.zeros((stages, width)), axes=(None, "embed"))

    def __call__(self, x: jax.Array, stage: jax.Array) -> jax.Array:
        """[B, S, D] and int [B, S] -> [B, S, D]."""
        scale, shift = self.scale.astype(x.dtype), self.shift.astype(x.dtype)
        return self.norm(x) * scale[stage] + shift[stage]


class _Block(nnx.Module):
    def __init__(self, config: BackboneConfig, stages: int, rngs: nnx.Rngs):
        self.attention_norm = StageNorm(config.width, stages, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = StageNorm(config.width, stages, config.norm_eps)
        self.mlp = GatedMLP(config, rngs)


class NarTrunk(nnx.Module):
    """Blocks as the backbone's, without causality, under norms of the stage."""

    def __init__(self, config: BackboneConfig, stages: int, rngs: nnx.Rngs):
        self.config = config
        self.layers = stack(lambda rngs: _Block(config, stages, rngs), config.layers, rngs)
        self.norm = StageNorm(config.width, stages, config.norm_eps)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        stage: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Embedded columns [B, S, D] and the stage of each, int [B, S] -> hidden [B, S, D].

        `key` is of dropout, in a training step.
        """
        mask = MaskSpec(q_segment_ids=segment_ids, kv_segment_ids=segment_ids)

        rate = self.config.dropout

        def body(block: _Block, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
            x = constrain(x, "rows", "columns", None)
            q, k, v = block.attention.project(block.attention_norm(x, stage), positions)
            x += dropout(block.attention.output(attention(q, k, v, mask)), rate, key, 0)
            return x + dropout(block.mlp(block.mlp_norm(x, stage)), rate, key, 1), None

        x = dropout(x.astype(self.config.dtype), rate, key, 0)
        keys = dropout_keys(rate, key, self.config.layers)
        x, _ = scan_layers(self.layers, body, x, keys, remat=self.config.remat)
        return self.norm(x, stage)


def stages(weights: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The row that each column's record is to fill in: the one that has targets.

    Args:
      weights: [B, R, S] of the targets.
      segment_ids: int [B, S].

    Returns:
      int [B, S].
    """
    row = (jnp.arange(weights.shape[1])[:, None] * (weights > 0)).max(1)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same * row[:, None]).max(-1)
