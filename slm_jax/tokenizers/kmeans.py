"""Minibatch k-means over features, on the device; the units of HuBERT-like tokenizers.

Minibatch steps: Sculley 2010, "Web-scale k-means clustering". Start: k-means++ (Arthur and
Vassilvitskii 2007) in its greedy form, which draws several candidates for each centroid and takes
the best.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from slm_jax.errors import UserError
from slm_jax.interop import safetensors
from slm_jax.streams import fingerprint

BLOCK = 8192  # vectors that `assign` and `inertia` put on the device at once
START_SAMPLE = 20_000  # vectors that the start is drawn from, or twice the centroids if more
STARTS, START_STEPS = 5, 5  # starts that are tried, and steps over the sample before they compare


@dataclasses.dataclass(frozen=True, eq=False)
class KMeans:
    """Fitted centroids.

    Attributes:
      centroids: float32 [K, D].
      source: fingerprint of what made the features, with the layer; "" if nobody said.
    """

    centroids: np.ndarray
    source: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for equal units of equal audio."""
        shape = list(self.centroids.shape)
        return fingerprint("kmeans-1", self.source, shape, self.centroids.tobytes())

    def assign(self, features: np.ndarray) -> np.ndarray:
        """[N, D] -> int32 [N], the nearest centroid of each; of equally near ones the first."""
        parts = [codes for codes, _ in self._nearest(features)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def inertia(self, features: np.ndarray) -> float:
        """Sum over [N, D] of the squared distances to the nearest centroids."""
        return float(
            sum(distances.sum(dtype=np.float64) for _, distances in self._nearest(features))
        )

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file; source and fingerprint stand in its header."""
        entries = {"centroids": (self.centroids.dtype, self.centroids.shape)}
        metadata = {"source": self.source, "fingerprint": self.fingerprint}
        safetensors.write(Path(path), entries, [self.centroids], metadata)

    @classmethod
    def load(cls, path: Path | str) -> KMeans:
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, another one, or centroids that do not have its fingerprint.
        """
        remedy = "give a file that KMeans.save wrote, or fit again"
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist", remedy)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                kmeans = cls(file.get_tensor("centroids"), metadata.get("source", ""))
        except SafetensorError as error:
            raise UserError(f"{path} holds no centroids: {error}", remedy) from None
        if kmeans.fingerprint != metadata.get("fingerprint"):
            raise UserError(f"the centroids in {path} do not have its fingerprint", remedy)
        return kmeans

    def _nearest(self, features: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Codes int32 [n] and squared distances [n], block after block."""
        if features.ndim != 2 or features.shape[1] != self.centroids.shape[1]:
            width = self.centroids.shape[1]
            raise ValueError(f"features have shape {features.shape}, wanted [N, {width}]")
        # Sizes of a few kinds only, because each is compiled.
        rows = min(BLOCK, 1 << max(len(features) - 1, 0).bit_length())
        centroids = jnp.asarray(self.centroids)
        for start in range(0, len(features), rows):
            block, count = _padded(features[start : start + rows], rows)
            codes, distances = _nearest(centroids, block)
            yield np.asarray(codes)[:count], np.asarray(distances)[:count]


def fit(
    features: np.ndarray,
    clusters: int,
    seed: int,
    *,
    batch_size: int = 10_000,
    passes: int = 20,
    source: str = "",
) -> KMeans:
    """Fits centroids: the best of a few k-means++ starts, then `refine`.

    Args:
      features: float [N, D], also memory-mapped; read a batch at a time.
      clusters: K, at most N.
      seed: equal seeds give equal centroids.
      batch_size, passes: of `refine`.
      source: of `KMeans`.

    Raises:
      UserError: fewer features than clusters, or features that are not finite.
    """
    if not 1 <= clusters <= len(features):
        raise UserError(
            f"{clusters} clusters of {len(features)} features",
            "ask for at least one cluster, and for no more than there are features",
        )
    rng = np.random.default_rng(seed)
    count = min(len(features), max(START_SAMPLE, 2 * clusters))
    rows = np.sort(rng.choice(len(features), count, replace=False))
    sample = jnp.asarray(_float(features[rows]))
    starts = [
        _try_start(sample, key, clusters) for key in jax.random.split(jax.random.key(seed), STARTS)
    ]
    centroids = min(starts, key=lambda start: float(start[1]))[0]
    centroids = refine(features, np.asarray(centroids), seed, batch_size=batch_size, passes=passes)
    if not np.isfinite(centroids).all():
        raise UserError("the features are not all finite", "look for NaN in what made them")
    return KMeans(centroids, source)


def refine(
    features: np.ndarray, centroids: np.ndarray, seed: int, *, batch_size: int, passes: int
) -> np.ndarray:
    """Minibatch k-means from given centroids.

    In each pass over the features, in random order, a centroid moves to the mean of those it took
    in this pass: Sculley's learning rate, whose counts restart with each pass, so that the start
    is forgotten. A centroid that took none in a pass is put on a vector drawn by its squared
    distance to its own centroid, as k-means++ draws; up to `passes` more follow while there are
    such centroids.

    Args:
      features: float [N, D].
      centroids: float [K, D].
      seed: of the order and the draws.
      batch_size: vectors a step; at least K is wise.
      passes: over all features.

    Returns:
      float32 [K, D].
    """
    rng = np.random.default_rng(seed)
    batches = -(-len(features) // batch_size)
    rows = -(-len(features) // batches)
    moved = jnp.asarray(_float(centroids))
    for number in range(2 * passes):
        order = rng.permutation(len(features))
        counts = jnp.zeros(len(centroids))
        for start in range(0, len(features), rows):
            # In order of place, which a memory-mapped file reads faster.
            block, count = _padded(features[np.sort(order[start : start + rows])], rows)
            moved, counts, distances = _step(moved, counts, block, count)
        empty = np.flatnonzero(np.asarray(counts) == 0)
        if len(empty):
            picks = _draw(rng, np.asarray(distances)[:count], len(empty))
            moved = moved.at[empty[: len(picks)]].set(block[picks])
        elif number >= passes - 1:
            break
    return np.asarray(moved)


def _draw(rng: np.random.Generator, weights: np.ndarray, wanted: int) -> np.ndarray:
    """Different indices drawn by weight, as many as wanted or there are (Gumbel top-k)."""
    tiny = np.finfo(np.float32).tiny
    keys = np.log(np.maximum(weights, tiny)) + rng.gumbel(size=len(weights))
    return np.argsort(-keys)[:wanted]


@jax.jit
def _nearest(centroids: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """centroids [K, D], x [N, D] -> codes int32 [N], squared distances [N]."""
    middle = jnp.mean(centroids, axis=0)  # features far from zero would lose digits without it
    near, c = x - middle, centroids - middle
    scores = 2 * jnp.matmul(near, c.T, precision="highest") - jnp.sum(c**2, axis=-1)
    codes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return codes, jnp.sum((x - centroids[codes]) ** 2, axis=-1)


@jax.jit
def _step(
    centroids: jax.Array, counts: jax.Array, x: jax.Array, valid: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One minibatch x [N, D] whose first `valid` count; centroids [K, D] and counts [K] after it,
    and squared distances [N] before it."""
    codes, distances = _nearest(centroids, x)
    # A product with one-hot rows, not a scatter, whose order of sums is not fixed on a GPU.
    hot = jax.nn.one_hot(codes, len(centroids)) * (jnp.arange(len(x)) < valid)[:, None]
    counts += hot.sum(axis=0)
    shift = jnp.matmul(hot.T, x - centroids[codes], precision="highest")
    return centroids + shift / jnp.maximum(counts, 1)[:, None], counts, distances


@functools.partial(jax.jit, static_argnums=2)
def _try_start(x: jax.Array, key: jax.Array, clusters: int) -> tuple[jax.Array, jax.Array]:
    """k-means++ and a few steps over x [N, D]: centroids [K, D], and their inertia."""
    centroids = _plus_plus(x, key, clusters)
    for _ in range(START_STEPS):
        centroids, _, _ = _step(centroids, jnp.zeros(clusters), x, len(x))
    return centroids, jnp.sum(_nearest(centroids, x)[1])


def _plus_plus(x: jax.Array, key: jax.Array, clusters: int) -> jax.Array:
    """x [N, D] -> [K, D]: the first at random; each next one is the best of a few candidates,
    drawn by squared distance to what is there."""
    candidates = 2 + int(np.log(clusters))
    middle = jnp.mean(x, axis=0)
    x = x - middle
    squares = jnp.sum(x**2, axis=-1)

    def distances(points: jax.Array) -> jax.Array:
        """[C, D] -> [C, N]."""
        products = jnp.matmul(points, x.T, precision="highest")
        return jnp.maximum(squares + jnp.sum(points**2, axis=-1)[:, None] - 2 * products, 0)

    def add(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        picks = jax.random.categorical(key, jnp.log(nearest), shape=(candidates,))
        after = jnp.minimum(nearest, distances(x[picks]))
        best = jnp.argmin(after.sum(axis=-1))
        return after[best], x[picks[best]]

    first_key, key = jax.random.split(key)
    first = x[jax.random.randint(first_key, (), 0, len(x))]
    keys = jax.random.split(key, clusters - 1)
    _, others = jax.lax.scan(add, distances(first[None])[0], keys)
    return jnp.concatenate([first[None], others]) + middle


def _padded(block: np.ndarray, rows: int) -> tuple[jax.Array, int]:
    """float32 [rows, D] with zeros behind the block, and how many are the block's."""
    block = _float(block)
    return jnp.asarray(np.pad(block, ((0, rows - len(block)), (0, 0)))), len(block)


def _float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)
