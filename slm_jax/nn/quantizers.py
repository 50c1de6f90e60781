"""Residual vector quantisation and finite scalar quantisation, as pure functions of their state.

RVQ: van den Oord et al. 2017 (arXiv 1711.00937), EMA codebooks of its appendix A.1, residual over
levels as in SoundStream (arXiv 2107.03312 §III-C), with k-means start and dead-code revival.
FSQ: Mentzer et al. 2023 (arXiv 2309.15505).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Quantized(NamedTuple):
    """codes [..., K] int32, latents [..., D] (sum over the used levels), commitment: scalar."""

    codes: jax.Array
    latents: jax.Array
    commitment: jax.Array


@dataclasses.dataclass(frozen=True)
class RvqConfig:
    """K levels of V codes in D dimensions."""

    levels: int = 4
    codes: int = 512
    width: int = 256
    decay: float = 0.99
    revive_below: float = 0.02

    def __post_init__(self):
        if min(self.levels, self.codes, self.width) < 1:
            raise ValueError("RvqConfig: levels, codes and width must be positive")

    @property
    def vocab(self) -> tuple[int, ...]:
        return (self.codes,) * self.levels


def rvq_init(config: RvqConfig) -> dict[str, jax.Array]:
    """Empty codebooks; `rvq_kmeans` fills them from data before the quantiser is switched on."""
    shape = (config.levels, config.codes, config.width)
    return {"codebooks": jnp.zeros(shape), "counts": jnp.ones(shape[:2]), "sums": jnp.zeros(shape)}


def _nearest(codebook: jax.Array, x: jax.Array) -> jax.Array:
    """codebook [V, D], x [..., D] -> int32 [...]; least squared distance, ties to the lowest id."""
    scores = 2 * jnp.einsum("...d,vd->...v", x, codebook, precision="highest")
    return jnp.argmax(scores - jnp.sum(codebook**2, axis=-1), axis=-1).astype(jnp.int32)


def rvq_encode(codebooks: jax.Array, x: jax.Array) -> jax.Array:
    """codebooks [K, V, D], x [..., D] -> codes int32 [..., K], coarse first."""

    def level(residual, codebook):
        codes = _nearest(codebook, residual)
        return residual - codebook[codes], codes

    return jnp.moveaxis(jax.lax.scan(level, x, codebooks)[1], 0, -1)


def rvq_decode(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
    """codes [..., K'] with K' <= K (the coarse ones) -> latents [..., D]."""
    levels = range(codes.shape[-1])
    return sum(codebooks[k][codes[..., k]] for k in levels)


def rvq(codebooks: jax.Array, x: jax.Array, mask: jax.Array, used: jax.Array | int) -> Quantized:
    """Quantises with a straight-through gradient.

    Args:
      codebooks: [K, V, D], not trained by gradient (see `rvq_ema`).
      x: [B, N, D].
      mask: [B, N]; masked positions do not count in the commitment loss.
      used: how many levels contribute (quantiser dropout), K for all.
    """
    codebooks = jax.lax.stop_gradient(codebooks)
    codes = rvq_encode(codebooks, jax.lax.stop_gradient(x))
    per_level = jnp.stack([codebooks[k][codes[..., k]] for k in range(codes.shape[-1])])
    partial = jnp.cumsum(per_level, axis=0)
    weights = mask / jnp.maximum(mask.sum(), 1)
    active = (jnp.arange(partial.shape[0]) < used).astype(x.dtype)
    errors = jnp.sum(weights * jnp.mean((x - partial) ** 2, axis=-1), axis=(1, 2))
    latents = jnp.sum(active[:, None, None, None] * per_level, axis=0)
    return Quantized(codes, x + jax.lax.stop_gradient(latents - x), jnp.sum(active * errors))


def rvq_ema(
    state: dict[str, jax.Array], config: RvqConfig, x: jax.Array, mask: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    """One EMA update of every level; a code used less than `revive_below` of its fair share is
    put on a random vector of the batch. x [B, N, D], mask [B, N]."""
    flat, weight = x.reshape(-1, x.shape[-1]), mask.reshape(-1)
    total = jnp.maximum(weight.sum(), 1.0)

    def level(residual, inputs):
        codebook, counts, sums, key = inputs
        codes = _nearest(codebook, residual)
        hot = jax.nn.one_hot(codes, config.codes) * weight[:, None]
        share = hot.sum(0) * (config.codes / total)
        summed = (hot.T @ residual) * (config.codes / total)
        counts = config.decay * counts + (1 - config.decay) * share
        sums = config.decay * sums + (1 - config.decay) * summed
        dead = counts < config.revive_below
        picks = jax.random.choice(key, flat.shape[0], (config.codes,), p=weight / total)
        counts = jnp.where(dead, 1.0, counts)
        sums = jnp.where(dead[:, None], residual[picks], sums)
        updated = sums / counts[:, None]
        return residual - codebook[codes], (updated, counts, sums)

    keys = jax.random.split(key, config.levels)
    inputs = (state["codebooks"], state["counts"], state["sums"], keys)
    _, (codebooks, counts, sums) = jax.lax.scan(level, flat, inputs)
    return {"codebooks": codebooks, "counts": counts, "sums": sums}


def rvq_kmeans(config: RvqConfig, x: np.ndarray, seed: int, iterations: int = 20) -> dict:
    """Codebooks by k-means, level after level, on x [n, D] (n >= codes)."""
    if len(x) < config.codes:
        raise ValueError(f"k-means needs at least {config.codes} vectors, got {len(x)}")
    rng = np.random.default_rng(seed)
    residual, books = x.astype(np.float32), []
    for _ in range(config.levels):
        book = residual[rng.choice(len(x), config.codes, replace=False)].copy()
        for _ in range(iterations):
            codes = np.asarray(_nearest(jnp.asarray(book), jnp.asarray(residual)))
            counts = np.bincount(codes, minlength=config.codes)
            sums = np.zeros_like(book)
            np.add.at(sums, codes, residual)
            filled = counts > 0
            book[filled] = sums[filled] / counts[filled, None]
            book[~filled] = residual[rng.choice(len(x), int((~filled).sum()))]
        codes = np.asarray(_nearest(jnp.asarray(book), jnp.asarray(residual)))
        residual = residual - book[codes]
        books.append(book)
    codebooks = jnp.asarray(np.stack(books))
    shape = codebooks.shape
    return {"codebooks": codebooks, "counts": jnp.ones(shape[:2]), "sums": codebooks}


@dataclasses.dataclass(frozen=True)
class FsqConfig:
    """K groups, each the product of the scalar levels `grid` (vocabulary = their product).

    The latent width is K * len(grid); group k is level k of the stream. FSQ has no coarse-to-fine
    order of its own: the groups are parallel views.
    """

    levels: int = 4
    grid: tuple[int, ...] = (8, 8, 8)

    def __post_init__(self):
        if self.levels < 1 or not self.grid or min(self.grid) < 2:
            raise ValueError("FsqConfig: levels must be positive and every grid entry at least 2")

    @property
    def vocab(self) -> tuple[int, ...]:
        return (int(np.prod(self.grid)),) * self.levels

    @property
    def width(self) -> int:
        return self.levels * len(self.grid)


def _fsq_bound(config: FsqConfig, z: jax.Array) -> jax.Array:
    """Squashes z [..., K, d] so that rounding gives `grid` values a dimension (paper, App. A)."""
    grid = jnp.asarray(config.grid, z.dtype)
    half = (grid - 1) * (1 + 1e-3) / 2
    offset = jnp.where(grid % 2 == 0, 0.5, 0.0)
    return jnp.tanh(z + jnp.arctanh(offset / half)) * half - offset


def _fsq_basis(config: FsqConfig) -> jax.Array:
    return jnp.asarray(np.cumprod((1, *config.grid[:-1])), jnp.int32)


def fsq(config: FsqConfig, x: jax.Array) -> Quantized:
    """x [..., width] -> codes [..., K], latents [..., width] in [-1, 1]; no commitment needed."""
    grid = jnp.asarray(config.grid)
    bounded = _fsq_bound(config, x.reshape(*x.shape[:-1], config.levels, len(config.grid)))
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    digits = jnp.round(bounded).astype(jnp.int32) + grid // 2
    codes = jnp.sum(digits * _fsq_basis(config), axis=-1).astype(jnp.int32)
    latents = (rounded / (grid // 2)).reshape(x.shape)
    return Quantized(codes, latents, jnp.zeros(()))


def fsq_decode(config: FsqConfig, codes: jax.Array) -> jax.Array:
    """codes [..., K] -> latents [..., width]."""
    grid = jnp.asarray(config.grid)
    digits = (codes[..., None] // _fsq_basis(config)) % grid
    latents = (digits - grid // 2) / (grid // 2)
    return latents.reshape(*codes.shape[:-1], config.width).astype(jnp.float32)


def fsq_codebooks(config: FsqConfig) -> jax.Array:
    """[K, V, width]: what each code of each group adds to the latent (zero in the other groups)."""
    size = config.vocab[0]
    single = FsqConfig(1, config.grid)
    vectors = fsq_decode(single, jnp.arange(size)[:, None])
    blocks = jnp.eye(config.levels)[:, None, :, None] * vectors[None, :, None, :]
    return blocks.reshape(config.levels, size, config.width)
