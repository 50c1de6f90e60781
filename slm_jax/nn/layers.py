"""Building blocks that every network here is made of.

Conventions: kernels are [in, out]; products are in the dtype of the input, norms and the gradients
of weights in f32; each parameter carries the names of its logical axes for
`slm_jax.nn.tree.logical_axes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn import remat as remats
from slm_jax.nn.remat import Remat, of_product, recomputed
from slm_jax.nn.tree import merge, pure_params

Axes = tuple[str | None, ...]
M = TypeVar("M", bound=nnx.Module)

LECUN_NORMAL = jax.nn.initializers.lecun_normal()
NORMAL_002 = jax.nn.initializers.normal(0.02)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] times kernel [in, out], in the dtype of x.

    The kernel's gradient has the kernel's dtype before it is summed over devices, where XLA would
    sum rounded parts. And it is made as [in, out] at once: by JAX's own rule it would be [out, in]
    and then transposed, for which XLA:CPU copies what comes from behind, transposed.
    """
    return x @ kernel.astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel), (x, kernel)


def _product_gradients(
    held: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = held
    rows = tuple(range(x.ndim - 1))
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    of_kernel = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=wide)
    return g @ kernel.astype(x.dtype).T, of_kernel.astype(kernel.dtype)


product.defvjp(_product, _product_gradients)


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
        y = of_product(product(x, self.kernel[...]))
        if self.bias is not None:
            y = (y + self.bias[...]).astype(x.dtype)
        if self.lora_scale:
            low_rank = of_product(product(x, self.lora_a[...]))
            y += of_product(product(low_rank, self.lora_b[...])) * self.lora_scale
        return y


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in f32."""

    def __init__(self, width: int, *, epsilon: float = 1e-5, axes: Axes = ("embed",)):
        self.scale = nnx.Param(jnp.ones(width), axes=axes)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return _rms_norm(x, self.scale[...], self.epsilon)


@functools.partial(recomputed, static_argnums=2)
def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + epsilon)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


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
        return product(x, self.embedding[ids].T)


@recomputed
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""
    return jax.nn.silu(gate) * up


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, in f32, as torch.nn.functional.gelu.

    By erf, within 2e-6 of `jax.nn.gelu(x, approximate=False)`, which takes three times as long on a
    CPU because its erfc keeps the relative precision of tails that are added to larger numbers.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, place: int) -> jax.Array:
    """Zeros a share `rate` of x and scales the others to the same mean (Srivastava et al. 2014).

    Args:
      x: anything.
      rate: below 1.
      key: of chance; None leaves x as it is.
      place: of x among those that have the key.
    """
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def dropout_keys(rate: float, key: jax.Array | None, count: int) -> jax.Array | None:
    """A key for each of `count` layers, or None where they drop nothing."""
    return None if key is None or not rate else jax.random.split(key, count)


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` modules with weights of their own as one; each array has a leading layer axis."""
    return nnx.split_rngs(splits=count)(nnx.vmap(make))(rngs)


def scan_layers(
    layers: nnx.Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    remat: Remat = "none",
) -> tuple[Any, Any]:
    """Runs `carry, y = body(layer, carry, x)` over the layers of a `stack`.

    Args:
      layers: what `stack` returned.
      body: sees one layer, the carry, and that layer's slice of `xs`.
      carry: any pytree whose shapes and dtypes `body` keeps.
      xs: pytree of arrays with a leading layer axis, or None.
      remat: what is kept for the backward pass.

    Returns:
      The last carry, and the stacked ys.
    """
    graphdef, params = pure_params(layers)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer_params, x = inputs
        return body(merge(graphdef, layer_params), carry, x)

    return jax.lax.scan(remats.layer(step, remat), carry, (params, xs))
