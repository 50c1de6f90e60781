"""Residual vector quantisers of neural codecs, for inference (SoundStream, Zeghidour et al. 2021,
arXiv 2107.03312 §III-C): each level quantises what the levels before it left.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import Linear
from slm_jax.nn.quantizers import rvq_decode, rvq_encode


class ResidualCodebooks(nnx.Module):
    """The nearest vector of each level; in a space of its own when `inner` is not `width`.

    EncodecResidualVectorQuantizer and MimiResidualVectorQuantizer of transformers.
    """

    def __init__(self, levels: int, codes: int, width: int, inner: int, *, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), (levels, codes, inner))
        self.codebooks = nnx.Param(normal)
        self.down = Linear(width, inner, rngs=rngs) if inner != width else None
        self.up = Linear(inner, width, rngs=rngs) if inner != width else None

    def encode(self, latents: jax.Array, levels: int) -> jax.Array:
        """[..., width] -> codes of the first `levels` levels, int32 [..., levels]."""
        x = latents if self.down is None else self.down(latents)
        return rvq_encode(self.codebooks[:levels], x)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes of the first K' levels [..., K'] -> [..., width]."""
        x = rvq_decode(self.codebooks[...], codes)
        return x if self.up is None else self.up(x)


class SplitCodebooks(nnx.Module):
    """Two residual quantisers of the same latents, whose outputs add up: the first levels carry
    the distilled (semantic) content, the others the sound (Moshi, Défossez et al. 2024,
    arXiv 2410.00037 §3.3.2)."""

    def __init__(
        self, semantic: int, levels: int, codes: int, width: int, inner: int, *, rngs: nnx.Rngs
    ):
        self.semantic_levels = semantic
        self.semantic = ResidualCodebooks(semantic, codes, width, inner, rngs=rngs)
        self.acoustic = ResidualCodebooks(levels - semantic, codes, width, inner, rngs=rngs)

    def encode(self, latents: jax.Array, levels: int) -> jax.Array:
        """[..., width] -> int32 [..., levels], the semantic levels first."""
        semantic = self.semantic.encode(latents, min(levels, self.semantic_levels))
        acoustic = self.acoustic.encode(latents, max(levels - self.semantic_levels, 0))
        return jnp.concatenate([semantic, acoustic], axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """[..., K'] of the first K' levels -> [..., width]."""
        latents = self.semantic.decode(codes[..., : self.semantic_levels])
        if codes.shape[-1] > self.semantic_levels:
            latents += self.acoustic.decode(codes[..., self.semantic_levels :])
        return latents


class FactorisedLevel(nnx.Module):
    """The code whose vector has the most similar direction, in a narrow space (Improved VQGAN, Yu
    et al. 2021, arXiv 2110.04627 §3.2). DacVectorQuantize of transformers."""

    def __init__(self, codes: int, width: int, inner: int, *, rngs: nnx.Rngs):
        self.down = Linear(width, inner, bias=True, rngs=rngs)
        self.up = Linear(inner, width, bias=True, rngs=rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (codes, inner)))

    def encode(self, latents: jax.Array) -> jax.Array:
        """[..., width] -> int32 [...]."""
        scores = _direction(self.down(latents)) @ _direction(self.codebook[...]).T
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)

    def decode(self, codes: jax.Array) -> jax.Array:
        """int [...] -> [..., width]."""
        return self.up(self.codebook[codes])


class FactorisedCodebooks(nnx.Module):
    """Residual levels, each of which may be slower than the latents: level k quantises the mean of
    every `strides[k]` latents (SNAC, Siuzdak et al. 2024, arXiv 2410.14411 §3.1)."""

    def __init__(
        self, strides: tuple[int, ...], codes: int, width: int, inner: int, *, rngs: nnx.Rngs
    ):
        self.strides = strides
        self.levels = nnx.List(FactorisedLevel(codes, width, inner, rngs=rngs) for _ in strides)

    def encode(self, latents: jax.Array, levels: int) -> list[jax.Array]:
        """[B, T, width], T a multiple of all strides -> for each of the first `levels` levels
        int32 [B, T / stride]."""
        written = []
        for level, stride in list(zip(self.levels, self.strides, strict=True))[:levels]:
            batch, count, width = latents.shape
            means = latents.reshape(batch, count // stride, stride, width).mean(axis=2)
            written.append(level.encode(means))
            latents = latents - jnp.repeat(level.decode(written[-1]), stride, axis=1)
        return written

    def decode(self, codes: list[jax.Array]) -> jax.Array:
        """What `encode` gives, of all levels or the first ones -> [B, T, width]."""
        read = zip(self.levels, self.strides, codes, strict=False)
        return sum(jnp.repeat(level.decode(x), stride, axis=1) for level, stride, x in read)


def _direction(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
