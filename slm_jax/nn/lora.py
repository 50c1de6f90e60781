"""Low-rank updates put into the weights that they update."""

from __future__ import annotations

import jax.numpy as jnp

from slm_jax.nn.tree import Params, flatten, unflatten

LEAVES = ("/lora_a", "/lora_b")


def merged(params: Params, alpha: float, rank: int) -> Params:
    """Without LoRA: kernel + lora_a lora_b * alpha / rank, in the dtype of the kernel.

    The product is in f32, so that the merged network differs from the other by the rounding of the
    sum to that dtype alone.

    Args:
      params: of any network whose `Linear`s have that alpha and rank; those without it stay.
      alpha, rank: as in `BackboneConfig`.
    """
    flat = flatten(params)
    plain = {name: x for name, x in flat.items() if not name.endswith(LEAVES)}
    for name in flat:
        if name.endswith("/lora_a"):
            stem = name.removesuffix("/lora_a")
            kernel, b = flat[f"{stem}/kernel"], flat[f"{stem}/lora_b"]
            update = jnp.matmul(
                flat[name], b, precision="highest", preferred_element_type=jnp.float32
            )
            plain[f"{stem}/kernel"] = (kernel + update * (alpha / rank)).astype(kernel.dtype)
    return unflatten(plain)
