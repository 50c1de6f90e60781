import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.kmeans import KMeans, fit, refine

CENTRES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)


def clouds(points: int = 403) -> np.ndarray:
    """Four clouds around `CENTRES`, far apart."""
    rng = np.random.default_rng(0)
    picked = CENTRES[rng.integers(4, size=points)]
    return (picked + rng.normal(size=(points, 2)) * 0.3).astype(np.float32)


def test_finds_the_centres_of_clouds():
    found = fit(clouds(), 4, 0, batch_size=64).centroids
    order = np.lexsort(found.round().T)
    np.testing.assert_allclose(found[order], CENTRES[np.lexsort(CENTRES.T)], atol=0.15)


def test_an_empty_cluster_is_repaired_even_in_the_last_pass():
    x = clouds()
    start = np.array([[0, 0], [10, 0], [0, 10], [1e3, 1e3]], np.float32)
    assert len(np.unique(KMeans(start).assign(x))) == 3
    repaired = KMeans(refine(x, start, 0, batch_size=64, passes=1))
    assert len(np.unique(repaired.assign(x))) == 4
    assert repaired.inertia(x) < 1.1 * fit(x, 4, 0).inertia(x)


def test_all_empty_clusters_are_repaired():
    x = clouds()
    start = np.array([[5, 5], [1e3, 1e3], [2e3, 0], [-1e3, 0]], np.float32)
    assert len(np.unique(KMeans(start).assign(x))) == 1
    repaired = KMeans(refine(x, start, 0, batch_size=64, passes=3))
    assert len(np.unique(repaired.assign(x))) == 4


def test_equal_seeds_give_equal_centroids_and_others_do_not():
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    one, same, other = (fit(x, 10, seed, batch_size=100, passes=2) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_every_vector_counts_once_in_a_pass_whatever_the_batch():
    x = np.random.default_rng(0).normal(size=(101, 3)).astype(np.float32) + 7
    for batch_size in (7, 100, 101, 1000):
        centroid = refine(x, np.zeros((1, 3)), 0, batch_size=batch_size, passes=1)
        np.testing.assert_allclose(centroid[0], x.mean(0), rtol=1e-5)


def test_assign_and_inertia_are_the_nearest_over_all_blocks(monkeypatch):
    monkeypatch.setattr(kmeans, "BLOCK", 64)
    x = clouds()
    fitted = KMeans(x[:9])
    distances = ((x[:, None] - fitted.centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(fitted.assign(x), distances.argmin(1))
    assert fitted.inertia(x) == pytest.approx(distances.min(1).sum(), rel=1e-5)
    assert fitted.assign(x[:0]).shape == (0,) and fitted.inertia(x[:0]) == 0
    with pytest.raises(ValueError, match=r"wanted \[N, 2\]"):
        fitted.assign(np.zeros((3, 1), np.float32))


def test_features_far_from_zero_are_told_apart():
    near, far = clouds(), clouds() + np.float32(1e5)
    centroids = fit(near, 4, 0).centroids
    np.testing.assert_array_equal(
        KMeans(centroids + 1e5).assign(far), KMeans(centroids).assign(near)
    )
    assert fit(far, 4, 0).inertia(far) == pytest.approx(KMeans(centroids).inertia(near), rel=0.01)


def test_more_clusters_than_different_vectors_stay_finite():
    x = np.repeat(CENTRES, 3, axis=0)
    fitted = fit(x, 6, 0, passes=2)
    assert np.isfinite(fitted.centroids).all() and fitted.inertia(x) == pytest.approx(0, abs=1e-6)
    assert fit(x, 1, 0).centroids[0] == pytest.approx([5, 5])


@pytest.mark.parametrize("clusters", [0, 13])
def test_impossible_numbers_of_clusters_are_refused(clusters):
    with pytest.raises(UserError, match=f"{clusters} clusters of 12"):
        fit(np.repeat(CENTRES, 3, axis=0), clusters, 0)


def test_features_that_are_not_finite_are_refused():
    x = clouds()
    x[17, 1] = np.nan
    with pytest.raises(UserError, match="not all finite"):
        fit(x, 4, 0)


def test_a_saved_model_is_the_same_again(tmp_path):
    fitted = fit(clouds(), 4, 0, source="encoder-1")
    fitted.save(tmp_path / "units.safetensors")
    loaded = KMeans.load(tmp_path / "units.safetensors")
    np.testing.assert_array_equal(loaded.centroids, fitted.centroids)
    assert (loaded.source, loaded.fingerprint) == ("encoder-1", fitted.fingerprint)
    assert KMeans(fitted.centroids, "encoder-2").fingerprint != fitted.fingerprint


def test_foreign_and_changed_files_are_refused(tmp_path):
    path = tmp_path / "units.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        KMeans.load(path)
    fit(clouds(), 4, 0).save(path)
    save_file({"centroids": load_file(path)["centroids"] + 1}, path, {"fingerprint": "0" * 16})
    with pytest.raises(UserError, match="fingerprint"):
        KMeans.load(path)
    save_file({"other": np.zeros(3)}, path)
    with pytest.raises(UserError, match="holds no centroids"):
        KMeans.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no centroids"):
        KMeans.load(path)
