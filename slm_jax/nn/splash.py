"""Splash attention (jax.experimental.pallas): causal, packed, grouped heads; TPU only.

Blocks of scores that no query may see are never computed, and none is ever written to HBM. The
kernel knows one device, so that over a mesh it runs inside `shard_map`, placed as
`slm_jax.nn.placement` places what a network computes: queries may be divided by columns, the keys
of a row are whole.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from slm_jax.nn.placement import ACTIVATIONS, Parts, parts

_BLOCKS = (512, 256, 128)  # columns of a block; the first that divides a device's columns


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Whether the kernel takes attention of a row to itself: q [B, S, H, h], k [B, S, Hkv, h]."""
    shards = parts()
    return (
        q.shape[0] % shards.rows == 0
        and k.shape[2] % shards.heads == 0
        and q.shape[1] % (shards.columns * _BLOCKS[-1]) == 0
        and q.shape[3] % 64 == 0
        and q.dtype in (jnp.bfloat16, jnp.float32)
    )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of a row to itself.

    Args:
      q: [B, S, H, h].
      k, v: [B, S, Hkv, h].
      segment_ids: int [B, S]; None for rows of one segment.
      window: as in `MaskSpec`.
      interpret: do the kernel's arithmetic on any platform, slowly.

    Returns:
      [B, S, H, h] in the dtype of `q`.
    """
    kernel = _kernel(q.shape, parts(), window, interpret)
    ids = None if segment_ids is None else kernels.SegmentIds(segment_ids, segment_ids)
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))

    def local(kernel: kernels.SplashAttentionKernel, *qkv_ids: jax.Array) -> jax.Array:
        return jax.vmap(kernel)(*qkv_ids)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        rows, heads, columns = (ACTIVATIONS[name] for name in Parts._fields)
        queries = PartitionSpec(rows, heads, columns)
        keys = PartitionSpec(rows, heads)
        of_ids = kernels.SegmentIds(PartitionSpec(rows, columns), PartitionSpec(rows))
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, columns)))
        local = jax.shard_map(
            local,
            in_specs=(of_kernel, queries, keys, keys, None if ids is None else of_ids),
            out_specs=queries,
            check_vma=False,
        )
    return local(kernel, q, k, v, ids).swapaxes(1, 2)


def _kernel(
    shape: tuple[int, ...], shards: Parts, window: int | None, interpret: bool
) -> kernels.SplashAttentionKernel:
    _, length, heads, _ = shape
    block = next(size for size in _BLOCKS if length // shards.columns % size == 0)
    mask = masks.CausalMask((length, length))
    if window is not None:
        mask = masks.LocalMask((length, length), (window - 1, 0), 0)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=shards.heads,
        q_seq_shards=shards.columns,
        interpret=interpret,
    )  # fmt: skip
