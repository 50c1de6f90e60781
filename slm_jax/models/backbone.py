"""The temporal transformer: one decoder for the Llama, SmolLM2, Mistral and Qwen families."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.layers import (
    Embedding,
    Linear,
    RMSNorm,
    dropout,
    dropout_keys,
    gated,
    product,
    scan_layers,
    stack,
)
from slm_jax.nn.placement import constrain
from slm_jax.nn.remat import of_attention, of_mlp
from slm_jax.nn.rope import inverse_frequencies, rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, [L, B, T, Hkv, h]; slot t holds position t of its row.

    A query at position p sees the slots up to p, so a row may be shorter than its batch: what
    padding wrote beyond a row's end is overwritten before anything sees it.
    """

    k: jax.Array
    v: jax.Array


def init_cache(config: BackboneConfig, batch: int, length: int) -> KVCache:
    """An empty cache for `batch` rows of at most `length` positions."""
    shape = (config.layers, batch, length, config.kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary embedding."""

    def __init__(self, config: BackboneConfig, rngs: nnx.Rngs):
        self.config = config
        width, head_dim = config.width, config.head_dim
        query, key = config.heads * head_dim, config.kv_heads * head_dim
        lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha, "rngs": rngs}
        bias, kv_axes = config.qkv_bias, ("embed", "kv_heads")
        self.q = Linear(width, query, axes=("embed", "heads"), bias=bias, **lora)
        self.k = Linear(width, key, axes=kv_axes, bias=bias, **lora)
        self.v = Linear(width, key, axes=kv_axes, bias=bias, **lora)
        self.o = Linear(query, width, axes=("heads", "embed"), **lora)
        if config.qk_norm:
            self.q_norm = RMSNorm(head_dim, epsilon=config.norm_eps, axes=("head_dim",))
            self.k_norm = RMSNorm(head_dim, epsilon=config.norm_eps, axes=("head_dim",))

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, S, D] -> rotated q [B, S, H, h], rotated k and plain v [B, S, Hkv, h]."""
        config = self.config
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, config.head_dim)
            for layer in (self.q, self.k, self.v)
        )
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        q = constrain(rotate(q, positions, frequencies), "rows", "columns", "heads", None)
        # Queries see the keys of all columns.
        k = constrain(rotate(k, positions, frequencies), "rows", None, "heads", None)
        v = constrain(v, "rows", None, "heads", None)
        return of_attention(q), of_attention(k), of_attention(v)

    def output(self, heads: jax.Array) -> jax.Array:
        """[B, S, H, h] -> [B, S, D]."""
        heads = of_attention(heads)
        return self.o(heads.reshape(*heads.shape[:2], -1))


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: BackboneConfig, rngs: nnx.Rngs):
        lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha, "rngs": rngs}
        width, inner = config.width, config.mlp_width
        self.gate = Linear(width, inner, axes=("embed", "mlp"), **lora)
        self.up = Linear(width, inner, axes=("embed", "mlp"), **lora)
        self.down = Linear(inner, width, axes=("mlp", "embed"), **lora)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = gated(of_mlp(self.gate(x)), of_mlp(self.up(x)))
        return self.down(constrain(inner, "rows", "columns", "mlp"))


class Block(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: BackboneConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, epsilon=config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, epsilon=config.norm_eps)
        self.mlp = GatedMLP(config, rngs)


class Backbone(nnx.Module):
    """Embedding, scanned blocks, final norm and text head.

    Parameters: embedding/embedding [V, D]; layers/{attention_norm,mlp_norm}/scale;
    layers/attention/{q,k,v,o}/kernel (q,k,v/bias; q_norm,k_norm/scale);
    layers/mlp/{gate,up,down}/kernel; norm/scale; head/kernel [D, V] unless tied. With a
    `vocab_size` of 0 there is neither embedding nor head.
    """

    def __init__(self, config: BackboneConfig, rngs: nnx.Rngs):
        self.config = config
        if config.vocab_size:
            self.embedding = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.layers = stack(lambda rngs: Block(config, rngs), config.layers, rngs)
        self.norm = RMSNorm(config.width, epsilon=config.norm_eps)
        if config.vocab_size and not config.tie_embeddings:
            axes = ("embed", "vocab")
            self.head = Linear(config.width, config.vocab_size, axes=axes, rngs=rngs)

    def embed(self, ids: jax.Array) -> jax.Array:
        """int [B, S] -> [B, S, D]."""
        return self.embedding(ids).astype(self.config.dtype)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the blocks over S columns.

        Args:
          x: [B, S, D] embedded columns.
          positions: int [B, S], for rotation, causality and, with a cache, the slot of each
            column; a column whose position lies outside the cache is not written.
          segment_ids: int [B, S] of packed rows, 0 for padding; not with a cache.
          cache: from `init_cache`, or what an earlier call returned; same batch.
          key: of dropout, in a training step; without a cache.

        Returns:
          hidden [B, S, D] after the final norm, and the cache with these columns written.
        """
        hidden, _, cache = self.run(x, positions, segment_ids, cache, key=key)
        return hidden, cache

    def run(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        cache: KVCache | None,
        mix: jax.Array | None = None,
        tap: int | None = None,
        key: jax.Array | None = None,
        sees: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, KVCache | None]:
        """The same, with a mixture of all layers, or one of them, beside the last state.

        Args:
          x, positions, segment_ids, cache, key: as above.
          mix: f32 [1 + layers], what the embedded columns and the output of each block count; each
            is first divided by its root mean square, because it grows from layer to layer.
          tap: in place of `mix`, the block whose output is wanted as it is; 0 is the first.
          sees: int [B, S], the last column of the row (slot of the cache) that each column sees
            within its segment; itself by default.

        Returns:
          hidden, the mixture or the tapped state [B, S, D] (None without either), and the cache.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("a cache holds one segment a row: give no segment_ids with it")
        x = x.astype(self.config.dtype)
        beside = _Beside(mix, tap, self.config.layers)
        if cache is None:
            x, kept = self._full(x, positions, segment_ids, beside, key, sees)
        else:
            x, kept, cache = self._cached(x, positions, cache, beside, sees)
        kept = None if kept is None else kept.astype(x.dtype)
        return self.norm(x), kept, cache

    def logits(self, hidden: jax.Array, ids: slice = slice(None)) -> jax.Array:
        """hidden [B, S, D] -> text logits [B, S, V], or those of some `ids`."""
        if self.config.tie_embeddings:
            return self.embedding.attend(hidden, ids)
        return product(hidden, self.head.kernel[:, ids])

    def _full(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        beside: _Beside,
        key: jax.Array | None,
        sees: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        mask = MaskSpec(True, self.config.window, segment_ids, segment_ids, sees)

        rate = self.config.dropout

        def body(block: Block, carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            (x, kept), (share, key) = carry, inputs
            x = constrain(x, "rows", "columns", None)
            q, k, v = block.attention.project(block.attention_norm(x), positions)
            x += dropout(block.attention.output(attention(q, k, v, mask)), rate, key, 0)
            x += dropout(block.mlp(block.mlp_norm(x)), rate, key, 1)
            return (x, beside.keep(kept, share, x)), None

        x = dropout(x, rate, key, 0)
        inputs = beside.shares, dropout_keys(rate, key, self.config.layers)
        carry = x, beside.first(x)
        return scan_layers(self.layers, body, carry, inputs, remat=self.config.remat)[0]

    def _cached(
        self,
        x: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        beside: _Beside,
        sees: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, KVCache]:
        rows, slots = jnp.arange(x.shape[0])[:, None], jnp.arange(cache.k.shape[2])[None]
        mask = MaskSpec(
            causal=True,
            window=self.config.window,
            q_positions=positions if sees is None else sees,
            kv_positions=slots,
        )

        # The whole cache is carried and one layer's columns are written in place: as a scanned
        # input and output it would be copied once a step.
        def body(block: Block, carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            x, kept, cache = carry
            layer, share = inputs
            q, k, v = block.attention.project(block.attention_norm(x), positions)
            at = (layer, rows, positions)
            cache = KVCache(cache.k.at[at].set(k, mode="drop"), cache.v.at[at].set(v, mode="drop"))
            x += block.attention.output(attention(q, cache.k[layer], cache.v[layer], mask))
            x += block.mlp(block.mlp_norm(x))
            return (x, beside.keep(kept, share, x), cache), None

        first, shares = beside.first(x), beside.shares
        layers = jnp.arange(self.config.layers)
        return scan_layers(self.layers, body, (x, first, cache), (layers, shares))[0]


class _Beside:
    """What is kept beside the last state: a mixture of all states, one of them, or nothing.

    Attributes:
      shares: [layers] what each block counts, or whether it is the one that is kept; or None.
    """

    def __init__(self, mix: jax.Array | None, tap: int | None, layers: int):
        self._mix, self._tap = mix, tap
        self.shares = None if mix is None else mix[1:]
        if tap is not None:
            self.shares = jnp.arange(layers) == tap

    def first(self, x: jax.Array) -> jax.Array | None:
        """Before the blocks: [B, S, D]."""
        if self._tap is not None:
            return x
        return None if self._mix is None else self.keep(jnp.float32(0), self._mix[0], x)

    def keep(self, kept: jax.Array | None, share: jax.Array, x: jax.Array) -> jax.Array | None:
        """After a block whose output is `x`."""
        if kept is None:
            return None
        if self._tap is not None:
            return jnp.where(share, x, kept)
        wide = x.astype(jnp.float32)
        return kept + share * wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)
