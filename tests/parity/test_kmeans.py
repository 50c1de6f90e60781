"""Our k-means against scikit-learn's: the inertia of what they find in the same features."""

import numpy as np
import pytest

from slm_jax.tokenizers.kmeans import fit

cluster = pytest.importorskip("sklearn.cluster")


def mixture(seed: int, points: int, width: int, parts: int, spread: float) -> np.ndarray:
    """Normal clouds of unit variance, their centres `spread` times as far apart, off zero."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(parts, width)) * spread + 5.0
    cloud = centres[rng.integers(parts, size=points)] + rng.normal(size=(points, width))
    return cloud.astype(np.float32)


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    return ((x[:, None].astype(np.float64) - centroids) ** 2).sum(-1).min(1).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("width", "parts", "spread", "clusters"),
    [(8, 16, 3.0, 16), (8, 16, 1.0, 16), (16, 60, 0.5, 40), (4, 12, 6.0, 12)],
)
def test_inertia_is_within_one_percent_of_scikit_learn(seed, width, parts, spread, clusters):
    x = mixture(seed, 4000, width, parts, spread)
    ours = fit(x, clusters, seed, batch_size=512)
    full = cluster.KMeans(clusters, n_init=5, random_state=0).fit(x)
    small = cluster.MiniBatchKMeans(clusters, n_init=5, batch_size=512, random_state=0).fit(x)
    mine = inertia(x, ours.centroids)
    assert mine == pytest.approx(ours.inertia(x), rel=1e-5)
    assert mine <= 1.01 * min(inertia(x, full.cluster_centers_), inertia(x, small.cluster_centers_))


def test_units_are_those_that_scikit_learn_gives_for_the_same_centroids():
    x = mixture(3, 3000, 8, 10, 1.0)
    ours = fit(x, 20, 0, batch_size=1000, passes=3)
    theirs = cluster.KMeans(20, n_init=1, init=ours.centroids, max_iter=1).fit(x)
    theirs.cluster_centers_ = ours.centroids
    np.testing.assert_array_equal(ours.assign(x), theirs.predict(x))
