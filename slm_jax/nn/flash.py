"""Flash attention (jax.experimental.pallas, Triton): causal, packed, grouped heads; NVIDIA GPUs.

No scores are written to memory. cuDNN, which does as much for rows of one segment, knows no
segments. The kernel knows one device and whole rows, so that over a mesh it runs inside
`shard_map`, placed as `slm_jax.nn.placement` places what a network computes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha
from jax.sharding import PartitionSpec

from slm_jax.nn.placement import ACTIVATIONS, parts

BLOCK = 128  # columns of a block of queries, and of keys, in the forward pass
WIDEST = 128  # head: blocks of a wider one exceed the shared memory of a multiprocessor


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Whether the kernel takes attention of a row to itself: q [B, S, H, h], k [B, S, Hkv, h]."""
    shards = parts()
    return (
        q.shape[0] % shards.rows == 0
        and k.shape[2] % shards.heads == 0
        and shards.columns == 1
        and q.shape[1] % BLOCK == 0
        and 16 <= q.shape[3] <= WIDEST
        and q.dtype in (jnp.bfloat16, jnp.float16)
    )


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Causal attention of a row to itself.

    Args:
      q: [B, S, H, h].
      k, v: [B, S, Hkv, h]; the kernel wants a key head for each query head, so that they are
        repeated.
      segment_ids: int [B, S].
      interpret: do the kernel's arithmetic on any platform, slowly.

    Returns:
      [B, S, H, h] in the dtype of `q`.
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        return mha(
            q, k, v, ids, sm_scale=q.shape[-1] ** -0.5, causal=True, block_sizes=_BLOCKS,
            interpret=interpret,
        )  # fmt: skip

    if jax.sharding.get_abstract_mesh().size > 1:
        rows, heads = ACTIVATIONS["rows"], ACTIVATIONS["heads"]
        of_heads = PartitionSpec(rows, None, heads)
        local = jax.shard_map(
            local,
            in_specs=(of_heads, of_heads, of_heads, PartitionSpec(rows)),
            out_specs=of_heads,
            check_vma=False,
        )
    return local(q, k, v, segment_ids)


_BLOCKS = BlockSizes(
    block_q=BLOCK, block_k=BLOCK,
    block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32,
)  # fmt: skip
