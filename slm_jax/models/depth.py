"""The depth transformer: predicts the rows of one column one after the other.

The backbone runs once a column, over time; this small decoder then runs over the K predicted rows
of that column, from the backbone's state there and the rows already known.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.models.heads import NEAR_ZERO
from slm_jax.nn.attention import MaskSpec, attention
from slm_jax.nn.depth_config import DepthConfig
from slm_jax.nn.layers import (
    Axes,
    Embedding,
    Linear,
    RMSNorm,
    dropout,
    dropout_keys,
    gated,
    scan_layers,
    stack,
)
from slm_jax.nn.placement import constrain
from slm_jax.nn.remat import of_attention, of_mlp
from slm_jax.nn.rope import inverse_frequencies, rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DepthCache:
    """What the steps of one column leave for the next; `step` 0 begins anew.

    Attributes:
      k, v: keys and values [L, N, T, Hkv, h] of the T steps.
      total: [N, W], sum of the rows' vectors so far; None but for condition "cumsum".
    """

    k: jax.Array
    v: jax.Array
    total: jax.Array | None


class StepLinear(nnx.Module):
    """y_t = x_t kernel_t, with a kernel for each step or, with steps=None, one for all."""

    def __init__(self, inputs: int, outputs: int, *, steps: int | None, axes: Axes, rngs: nnx.Rngs):
        shape, batch = (inputs, outputs), ()
        if steps is not None:
            shape, axes, batch = (steps, *shape), ("steps", *axes), (0,)
        init = jax.nn.initializers.lecun_normal(batch_axis=batch)
        self.kernel = nnx.Param(init(rngs.params(), shape), axes=axes)

    def __call__(self, x: jax.Array, at: slice) -> jax.Array:
        """[N, T or 1, in] at the T steps `at` -> [N, T, out] (one step if all have one kernel)."""
        kernel = self.kernel.astype(x.dtype)
        if kernel.ndim == 2:
            return x @ kernel
        return (x.swapaxes(0, 1) @ kernel[at]).swapaxes(0, 1)


class Block(nnx.Module):
    """Pre-norm grouped-query attention and gated SiLU MLP, over the steps of a column."""

    def __init__(self, config: DepthConfig, steps: int | None, rngs: nnx.Rngs):
        self.config = config
        width, inner, query = config.width, config.mlp_width, config.heads * config.head_dim
        key = config.kv_heads * config.head_dim

        def linear(inputs: int, outputs: int, *axes: str) -> StepLinear:
            return StepLinear(inputs, outputs, steps=steps, axes=axes, rngs=rngs)

        self.attention_norm = RMSNorm(width, epsilon=config.norm_eps)
        self.q = linear(width, query, "embed", "heads")
        self.k = linear(width, key, "embed", "kv_heads")
        self.v = linear(width, key, "embed", "kv_heads")
        self.o = linear(query, width, "heads", "embed")
        self.mlp_norm = RMSNorm(width, epsilon=config.norm_eps)
        self.gate = linear(width, inner, "embed", "mlp")
        self.up = linear(width, inner, "embed", "mlp")
        self.down = linear(inner, width, "mlp", "embed")

    def project(self, x: jax.Array, at: slice) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[N, T, W] at the steps `at` -> q [N, T, H, h], and k, v [N, T, Hkv, h]."""
        config, x = self.config, self.attention_norm(x)

        def heads(layer: StepLinear) -> jax.Array:
            y = layer(x, at).reshape(*x.shape[:2], -1, config.head_dim)
            return constrain(y, "cells", None, "heads", None)

        q, k, v = heads(self.q), heads(self.k), heads(self.v)
        if config.rope_theta:
            theta, scaling = config.rope_theta, config.rope_scaling
            frequencies = inverse_frequencies(config.head_dim, theta, scaling)
            positions = jnp.arange(at.start, at.stop)[None]
            q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        return of_attention(q), of_attention(k), of_attention(v)

    def mix(
        self, x: jax.Array, heads: jax.Array, at: slice, key: jax.Array | None = None
    ) -> jax.Array:
        """The block's output [N, T, W] from its input and what attention read [N, T, H, h].

        `key` is of dropout, in a training step.
        """
        rate, heads = self.config.dropout, of_attention(heads)
        x += dropout(self.o(heads.reshape(*x.shape[:2], -1), at), rate, key, 0)
        y = self.mlp_norm(x)
        inner = gated(of_mlp(self.gate(y, at)), of_mlp(self.up(y, at)))
        return x + dropout(self.down(inner, at), rate, key, 1)


class DepthTransformer(nnx.Module):
    """One softmax for each of K rows, each seeing the backbone's state and all rows before.

    Parameters: input/kernel [D, W]; tables/{i}/embedding [V, W] unless shared;
    layers/{attention_norm,mlp_norm}/scale; layers/{q,k,v,o,gate,up,down}/kernel; norm/scale;
    heads/{k}/kernel [W, V_k]. With weights per step, kernels of the layers and, where the steps
    read hidden one by one, `input` have an axis of steps before the last two.

    Args:
      config: sizes and traits.
      hidden_width: the backbone's width D.
      previous: ids of the row before each predicted row; first 0 if nothing comes before it.
      classes: ids V_k of each predicted row.

    Raises:
      UserError: previous and classes do not fit each other, or slices do not divide hidden_width.
    """

    def __init__(
        self,
        config: DepthConfig,
        hidden_width: int,
        previous: tuple[int, ...],
        classes: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        _check(config, hidden_width, previous, classes)
        self.config = config
        self.rows = len(classes)
        self.follows = previous[0] > 0  # a row comes before the first predicted one
        self.prefixed = config.condition in ("prefix", "cumsum")
        self.steps = self.rows + (self.prefixed and self.follows)
        per_step, width = config.per_step, config.width
        self.input = StepLinear(
            hidden_width // self.rows if config.condition == "slice" else hidden_width,
            width,
            steps=self.rows if per_step and not self.prefixed else None,
            axes=("embed", None),
            rngs=rngs,
        )
        if not config.shared_tables:
            init = jax.nn.initializers.normal(width**-0.5)  # as moshi's `_init_layer`
            self.tables = nnx.List(
                Embedding(size, width, rngs=rngs, axes=("codes", "embed"), init=init)
                for size in previous
                if size
            )
        steps = self.steps if per_step else None
        self.layers = stack(lambda rngs: Block(config, steps, rngs), config.layers, rngs)
        if config.final_norm:
            self.norm = RMSNorm(width, epsilon=config.norm_eps)
        self.heads = nnx.List(
            Linear(width, size, rngs=rngs, axes=("embed", "codes"), init=NEAR_ZERO)
            for size in classes
        )

    def __call__(
        self, hidden: jax.Array, previous: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """All rows at once, teacher-forced.

        Args:
          hidden: [N, D], the backbone's states; their dtype is what is computed in.
          previous: int [N, K], ids of the row before each row, -1 for an empty cell (a zero
            vector); with shared tables float [N, K, D], their vectors. What stands before the
            first row is not read if `previous[0]` of the constructor is 0.
          key: of dropout, in a training step.

        Returns:
          Logits [N, V_k] of each row.
        """
        vectors = [self._vector(k, previous[:, k]) for k in range(self.rows)]
        vectors = jnp.stack(vectors, axis=1).astype(hidden.dtype)
        if self.config.condition == "cumsum":
            vectors = jnp.cumsum(vectors, axis=1)
        x, _ = self._run(*self._sequence(hidden, vectors, 0), None, key)
        x = x[:, -self.rows :]
        return tuple(head(x[:, k]) for k, head in enumerate(self.heads))

    def init_cache(self, n: int, dtype: jax.typing.DTypeLike = jnp.float32) -> DepthCache:
        """An empty cache for `n` columns side by side; dtype as that of hidden."""
        config = self.config
        shape = (config.layers, n, self.steps, config.kv_heads, config.head_dim)
        total = jnp.zeros((n, config.width), dtype) if config.condition == "cumsum" else None
        return DepthCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), total)

    def step(
        self, k: int, hidden: jax.Array, previous: jax.Array, cache: DepthCache
    ) -> tuple[jax.Array, DepthCache]:
        """One row, after those before it; equal to that of `__call__`.

        Args:
          k: the row, static; 0, 1... in turn.
          hidden: [N, D], the same in every step of a column.
          previous: int [N] (or float [N, D]) of the row before, as in `__call__`.
          cache: from `init_cache` or the last step, of this column or (k = 0) of another.

        Returns:
          Logits [N, V_k], and the cache for row k + 1.
        """
        vector = self._vector(k, previous).astype(hidden.dtype)
        if self.config.condition == "cumsum":
            vector = vector if k == 0 else cache.total + vector
            cache = dataclasses.replace(cache, total=vector)
        x, cache = self._run(*self._sequence(hidden, vector[:, None], k), cache)
        return self.heads[k](x[:, -1]), cache

    def _vector(self, k: int, previous: jax.Array) -> jax.Array:
        """What the row before row k, int [N] or float [N, D], has to say: [N, W]."""
        if k == 0 and not self.follows:
            return jnp.zeros((previous.shape[0], self.config.width))
        if self.config.shared_tables:
            return self.input(previous[:, None], slice(k, k + 1))[:, 0]
        table = self.tables[k if self.follows else k - 1]
        return jnp.where(previous[:, None] < 0, 0, table(jnp.maximum(previous, 0)))

    def _sequence(self, hidden: jax.Array, vectors: jax.Array, k: int) -> tuple[jax.Array, slice]:
        """What the steps of the rows from k on read, [N, T, W], and which steps these are."""
        at = slice(k, k + vectors.shape[1])
        if not self.prefixed:
            parts = hidden[:, None]
            if self.config.condition == "slice":
                parts = hidden.reshape(hidden.shape[0], self.rows, -1)[:, at]
            return self.input(parts, at) + vectors, at
        if k:
            return vectors, slice(at.start + self.follows, at.stop + self.follows)
        first = self.input(hidden[:, None], slice(0, 1))
        x = jnp.concatenate([first, vectors if self.follows else vectors[:, 1:]], axis=1)
        return x, slice(0, x.shape[1])

    def _run(
        self, x: jax.Array, at: slice, cache: DepthCache | None, key: jax.Array | None = None
    ) -> tuple[jax.Array, DepthCache | None]:
        """The blocks over the steps `at`, which see those before them in the cache."""
        mask = MaskSpec(causal=True, q_positions=jnp.arange(at.start, at.stop)[None])

        def body(block: Block, carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            (x, cache), (layer, key) = carry, inputs
            x = constrain(x, "cells", None, None)
            q, k, v = block.project(x, at)
            if cache is not None:
                keys = cache.k.at[layer, :, at].set(k)
                values = cache.v.at[layer, :, at].set(v)
                cache = dataclasses.replace(cache, k=keys, v=values)
                k, v = keys[layer, :, : at.stop], values[layer, :, : at.stop]
            return (block.mix(x, attention(q, k, v, mask), at, key), cache), None

        rate = self.config.dropout
        x = dropout(x, rate, key, 0)
        inputs = jnp.arange(self.config.layers), dropout_keys(rate, key, self.config.layers)
        (x, cache), _ = scan_layers(self.layers, body, (x, cache), inputs, self.config.remat)
        return self.norm(x) if self.config.final_norm else x, cache


def _check(
    config: DepthConfig, hidden_width: int, previous: tuple[int, ...], classes: tuple[int, ...]
) -> None:
    rows = len(classes)
    if not rows or len(previous) != rows or min(*previous[1:], *classes, 1) < 1 or previous[0] < 0:
        raise UserError(
            f"a depth transformer cannot predict rows of {classes} ids after rows of {previous}",
            "give each predicted row its number of ids and that of the row before it; only the "
            "first may have none before it (0)",
        )
    if config.condition == "slice" and hidden_width % rows:
        raise UserError(
            f"condition slice cuts the backbone's width {hidden_width} into {rows} rows",
            f"take a width that is a multiple of {rows}, or another condition",
        )
