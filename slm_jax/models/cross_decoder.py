"""A temporal transformer that reads a memory by cross-attention, as MusicGen reads a text.

MusicGen (Copet et al. 2023, arXiv:2306.05284); reference: `MusicgenDecoder` of transformers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.models.backbone import KVCache
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.cross_decoder_config import CrossDecoderConfig
from slm_jax.nn.layers import LayerNorm, Linear, dropout, dropout_keys, scan_layers, stack
from slm_jax.nn.placement import constrain
from slm_jax.nn.remat import of_attention, of_mlp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossCache:
    """What decoding keeps of each row.

    Attributes:
      own: keys and values of the columns, [L, B, T, H, h]; slot t holds position t.
      memory: keys and values of the memory, [L, B, M, H, h]; never changed.
      memory_segment_ids: int [B, M], 0 for padding.
    """

    own: KVCache
    memory: KVCache
    memory_segment_ids: jax.Array


class Attention(nnx.Module):
    """Multi-head attention without biases, to columns of `source` width."""

    def __init__(self, config: CrossDecoderConfig, source: int, rngs: nnx.Rngs):
        self.heads = config.heads
        axes = ("embed", "heads")
        self.q = Linear(config.width, config.width, axes=axes, rngs=rngs)
        self.k = Linear(source, config.width, axes=axes, rngs=rngs)
        self.v = Linear(source, config.width, axes=axes, rngs=rngs)
        self.o = Linear(config.width, config.width, axes=("heads", "embed"), rngs=rngs)

    def query(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, H, h]."""
        return of_attention(constrain(self._split(self.q(x)), "rows", "columns", "heads", None))

    def keys(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, source] -> keys and values, each [B, T, H, h]."""
        k, v = self._split(self.k(source)), self._split(self.v(source))
        whole = ("rows", None, "heads", None)  # queries see the keys of all columns
        return of_attention(constrain(k, *whole)), of_attention(constrain(v, *whole))

    def output(self, heads: jax.Array) -> jax.Array:
        """[B, S, H, h] -> [B, S, D]."""
        heads = of_attention(heads)
        return self.o(heads.reshape(*heads.shape[:2], -1))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class MLP(nnx.Module):
    """down(gelu(up(x))), with the exact GELU."""

    def __init__(self, config: CrossDecoderConfig, rngs: nnx.Rngs):
        self.up = Linear(config.width, config.mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.down = Linear(config.mlp_width, config.width, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(of_mlp(self.up(x)), approximate=False))


class Block(nnx.Module):
    """Self-attention, cross-attention and MLP, each with LayerNorm before it."""

    def __init__(self, config: CrossDecoderConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = LayerNorm(config.width)
        self.attention = Attention(config, config.width, rngs)
        self.memory_norm = LayerNorm(config.width)
        self.memory_attention = Attention(config, config.memory_width, rngs)
        self.mlp_norm = LayerNorm(config.width)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: jax.Array,
        normed: jax.Array,
        own: KVCache,
        mask: MaskSpec,
        memory: KVCache,
        memory_mask: MaskSpec,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """x and `attention_norm(x)`, [B, S, D], and one layer's keys and values -> [B, S, D].

        `key` is of dropout, in a training step.
        """
        q, rate = self.attention.query(normed), self.dropout
        x += dropout(self.attention.output(attention(q, own.k, own.v, mask)), rate, key, 0)
        q = self.memory_attention.query(self.memory_norm(x))
        found = attention(q, memory.k, memory.v, memory_mask)
        sees_any = memory_mask.dense(q.shape[1], memory.k.shape[1]).any(-1)[..., None, None]
        read = self.memory_attention.output(jnp.where(sees_any, found, 0))
        x += dropout(read, rate, key, 1)
        return x + dropout(self.mlp(self.mlp_norm(x)), rate, key, 2)


class CrossDecoder(nnx.Module):
    """Sinusoidal positions, scanned blocks and a final norm; no embeddings and no heads.

    Parameters: layers/{attention,memory,mlp}_norm/{scale,bias};
    layers/{attention,memory_attention}/{q,k,v,o}/kernel; layers/mlp/{up,down}/kernel;
    norm/{scale,bias}.
    """

    def __init__(self, config: CrossDecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.layers = stack(lambda rngs: Block(config, rngs), config.layers, rngs)
        self.norm = LayerNorm(config.width)

    def init_cache(
        self,
        batch: int,
        length: int,
        memory: jax.Array,
        memory_segment_ids: jax.Array | None = None,
    ) -> CrossCache:
        """Room for `batch` rows of at most `length` positions, and what they read of the memory.

        Args:
          batch: B.
          length: positions a row.
          memory: [B, M, D'], or [1, M, D'] for all rows.
          memory_segment_ids: int [B, M] or [1, M], 0 for padding; None if there is none.
        """
        memory = jnp.broadcast_to(memory, (batch, *memory.shape[1:])).astype(self.config.dtype)
        ids = jnp.ones((1, 1), int) if memory_segment_ids is None else memory_segment_ids
        _, kept = scan_layers(
            self.layers, lambda block, _, __: (None, block.memory_attention.keys(memory)), None
        )
        config = self.config
        shape = (config.layers, batch, length, config.heads, config.head_dim)
        own = KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        return CrossCache(own, KVCache(*kept), jnp.broadcast_to(ids, memory.shape[:2]))

    def run(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        cache: CrossCache | None,
        memory: jax.Array | None = None,
        memory_segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, CrossCache | None]:
        """Runs the blocks over S columns.

        Args:
          x: [B, S, D] embedded columns, without positions.
          positions: int [B, S], for the sinusoids, causality and, with a cache, the slot of each
            column; a column whose position lies outside the cache is not written.
          segment_ids: int [B, S] of packed rows, 0 for padding; not with a cache.
          cache: from `init_cache`, or what an earlier call returned; same batch.
          memory: [B, M, D']; a cache has its own.
          memory_segment_ids: int [B, M], 0 for padding. With `segment_ids`, which need it, a column
            sees the memory of its own segment, else all that is not padding. A column that sees
            none gets zeros from cross-attention.
          key: of dropout, in a training step; without a cache.

        Returns:
          hidden [B, S, D] after the final norm, and the cache with these columns written.
        """
        if cache is not None and not (segment_ids is memory is memory_segment_ids is None):
            raise ValueError("a cache holds one segment a row and its memory: give neither with it")
        if cache is None and memory is None:
            raise ValueError("a CrossDecoder needs a memory, or a cache that has one")
        if segment_ids is not None and memory_segment_ids is None:
            raise ValueError("packed rows need memory_segment_ids, to tell whose memory is whose")
        x = (x + sinusoids(positions, self.config.width)).astype(self.config.dtype)
        if cache is None:
            x = self._full(x, positions, segment_ids, memory, memory_segment_ids, key)
        else:
            x, cache = self._cached(x, positions, cache)
        return self.norm(x), cache

    def _full(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        memory: jax.Array,
        memory_segment_ids: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        memory = memory.astype(x.dtype)
        mask = MaskSpec(True, None, segment_ids, segment_ids)
        ids = jnp.ones(memory.shape[:2], int) if memory_segment_ids is None else memory_segment_ids
        memory_mask = _memory_mask(positions, segment_ids, ids)

        def body(block: Block, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, None]:
            x = constrain(x, "rows", "columns", None)
            normed = block.attention_norm(x)
            own = KVCache(*block.attention.keys(normed))
            read = KVCache(*block.memory_attention.keys(memory))
            return block(x, normed, own, mask, read, memory_mask, key), None

        rate = self.config.dropout
        keys = dropout_keys(rate, key, self.config.layers)
        x = dropout(x, rate, key, 0)
        return scan_layers(self.layers, body, x, keys, remat=self.config.remat)[0]

    def _cached(
        self, x: jax.Array, positions: jax.Array, cache: CrossCache
    ) -> tuple[jax.Array, CrossCache]:
        rows, slots = jnp.arange(x.shape[0])[:, None], jnp.arange(cache.own.k.shape[2])[None]
        mask = MaskSpec(causal=True, q_positions=positions, kv_positions=slots)
        memory_mask = _memory_mask(positions, None, cache.memory_segment_ids)

        # As in `Backbone`, what is written is carried and written in place; what is only read is
        # scanned.
        def body(block: Block, carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            x, own = carry
            layer, memory = inputs
            normed, at = block.attention_norm(x), (layer, rows, positions)
            k, v = block.attention.keys(normed)
            own = KVCache(own.k.at[at].set(k, mode="drop"), own.v.at[at].set(v, mode="drop"))
            layer_own = KVCache(own.k[layer], own.v[layer])
            return (block(x, normed, layer_own, mask, memory, memory_mask), own), None

        layers = jnp.arange(self.config.layers)
        (x, own), _ = scan_layers(self.layers, body, (x, cache.own), (layers, cache.memory))
        return x, dataclasses.replace(cache, own=own)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """f32 [B, S, D] for int [B, S]: cosines, then sines, of D / 2 frequencies that fall
    geometrically from 1 to 1/10000 (`MusicgenSinusoidalPositionalEmbedding`)."""
    frequencies = np.geomspace(1, 1e-4, width // 2).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _memory_mask(
    positions: jax.Array, segment_ids: jax.Array | None, memory_segment_ids: jax.Array
) -> MaskSpec:
    """Columns see the memory of their own segment; without segment_ids, all but padding."""
    if segment_ids is None:
        segment_ids, memory_segment_ids = jnp.ones_like(positions), memory_segment_ids > 0
    # Padding of the memory must not be seen by padding of the columns, which has the id 0 too.
    ids = jnp.where(memory_segment_ids > 0, memory_segment_ids, -1)
    return MaskSpec(q_segment_ids=segment_ids, kv_segment_ids=ids)
