"""Building blocks that every network here is made of.

Conventions: kernels are [in, out]; weights are cast to the dtype of the input, norms compute in
f32; each parameter carries the names of its logical axes for `slm_jax.nn.tree.logical_axes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.tree import merge, pure_params

Axes = tuple[str | None, ...]
M = TypeVar("M", bound=nnx.Module)

LECUN_NORMAL = jax.nn.initializers.lecun_normal()
NORMAL_002 = jax.nn.initializers.normal(0.02)

# What a scanned layer keeps for the backward pass: everything, the products with weights, or only
# its input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Linear(nnx.Module):
    """y = x kernel + bias, plus a low-rank update when `lora_rank` > 0.

    The update is (x lora_a) lora_b * alpha / rank, zero at the start because lora_b is
    (Hu et al. 2021, arXiv:2106.09685).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        axes: Axes = ("embed", "mlp"),
        bias: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        init: Callable = LECUN_NORMAL,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:]) if bias else None
        self.lora_scale = lora_alpha / lora_rank if lora_rank else 0.0
        if lora_rank:
            a = jax.nn.initializers.he_uniform()(rngs.params(), (inputs, lora_rank))
            self.lora_a = nnx.Param(a, axes=(axes[0], None))
            self.lora_b = nnx.Param(jnp.zeros((lora_rank, outputs)), axes=(None, axes[1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        y = x @ self.kernel.astype(x.dtype)
        if self.bias is not None:
            y += self.bias.astype(x.dtype)
        if self.lora_scale:
            low_rank = x @ self.lora_a.astype(x.dtype)
            y += (low_rank @ self.lora_b.astype(x.dtype)) * self.lora_scale
        return y


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in f32."""

    def __init__(self, width: int, *, epsilon: float = 1e-5, axes: Axes = ("embed",)):
        self.scale = nnx.Param(jnp.ones(width), axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * self.scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis, in f32."""

    def __init__(self, width: int, *, epsilon: float = 1e-5, axes: Axes = ("embed",)):
        self.scale = nnx.Param(jnp.ones(width), axes=axes)
        self.bias = nnx.Param(jnp.zeros(width), axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = self.scale.astype(jnp.float32), self.bias.astype(jnp.float32)
        return (wide * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    """A table [V, D] of vectors, read by id, and the product with it as output head."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        axes: Axes = ("vocab", "embed"),
        init: Callable = NORMAL_002,
    ):
        self.embedding = nnx.Param(init(rngs.params(), (vocab_size, width)), axes=axes)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """int [...] -> [..., D]; ids must lie in [0, V)."""
        return jnp.take(self.embedding[...], ids, axis=0)

    def attend(self, x: jax.Array, ids: slice = slice(None)) -> jax.Array:
        """[..., D] -> logits [..., V], or those of some `ids`."""
        return x @ self.embedding[ids].astype(x.dtype).T


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, in f32, as torch.nn.functional.gelu.

    By erf, within 2e-6 of `jax.nn.gelu(x, approximate=False)`, which takes three times as long on a
    CPU because its erfc keeps the relative precision of tails that are added to larger numbers.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` modules with weights of their own as one; each array has a leading layer axis."""
    return nnx.split_rngs(splits=count)(nnx.vmap(make))(rngs)


def scan_layers(
    layers: nnx.Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    remat: str = "none",
) -> tuple[Any, Any]:
    """Runs `carry, y = body(layer, carry, x)` over the layers of a `stack`.

    Args:
      layers: what `stack` returned.
      body: sees one layer, the carry, and that layer's slice of `xs`.
      carry: any pytree whose shapes and dtypes `body` keeps.
      xs: pytree of arrays with a leading layer axis, or None.
      remat: a key of `REMAT`.

    Returns:
      The last carry, and the stacked ys.
    """
    graphdef, params = pure_params(layers)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer_params, x = inputs
        return body(merge(graphdef, layer_params), carry, x)

    if REMAT[remat] is not None:
        step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (params, xs))
