"""What goes into the backbone: text and speech of one column fused into one vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import Embedding, Linear


class CodeEmbedding(nnx.Module):
    """Sum over levels of learned code vectors, brought to the backbone's width.

    Each table has two vectors beside its codes, for INIT (before a level begins) and PAD (after it
    has ended). Vectors are drawn so that the sum has unit variance, as a normalised latent has.
    """

    def __init__(self, codebooks: tuple[int, ...], code_width: int, width: int, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(len(codebooks) ** -0.5)
        axes = ("codes", None)
        self.levels = nnx.List(
            Embedding(size + 2, code_width, rngs=rngs, axes=axes, init=init) for size in codebooks
        )
        self.projection = Linear(code_width, width, rngs=rngs, axes=(None, "embed"))

    def __call__(self, codes: jax.Array) -> jax.Array:
        """int [B, K, S] -> [B, S, D]."""
        vectors = [table(codes[:, level]) for level, table in enumerate(self.levels)]
        return self.projection(sum(vectors[1:], vectors[0]))


class Fusion(nnx.Module):
    """Convex sum of text and speech vectors with two learned weights.

    The weights are the softmax of two scalars. TASLM starts them at [-2, 2], so that speech has
    0.018 and the text LLM is hardly disturbed (TASTE-SpokenLM, `bridge.py`).
    """

    def __init__(self, init: tuple[float, float]):
        self.scalars = nnx.Param(jnp.array(init, jnp.float32), axes=(None,))

    def weights(self) -> jax.Array:
        """f32 [2]: of text, of speech."""
        return jax.nn.softmax(self.scalars[...])

    def __call__(self, text: jax.Array, speech: jax.Array) -> jax.Array:
        """Two [B, S, D] -> [B, S, D] in the dtype of `text`."""
        weights = self.weights()
        return (weights[0] * text + weights[1] * speech).astype(text.dtype)
