import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slm_jax.nn.attention as module
from slm_jax.nn.attention import MaskSpec, attention


def rand(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(q, k, v, visible):
    """Loops over batch, head and query; `visible(b, s, t)` says who sees whom."""
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, s, h in np.ndindex(q.shape[:3]):
        keys = [t for t in range(k.shape[1]) if visible(b, s, t)]
        score = np.array([q[b, s, h] @ k[b, t, h // group] for t in keys]) * q.shape[-1] ** -0.5
        weight = np.exp(score - score.max())
        out[b, s, h] = (weight / weight.sum()) @ v[b, keys, h // group]
    return out


SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]])
CASES = {
    "full": (MaskSpec(), lambda b, s, t: True),
    "causal": (MaskSpec(causal=True), lambda b, s, t: t <= s),
    "window": (MaskSpec(causal=True, window=2), lambda b, s, t: s - 2 < t <= s),
    "packed": (
        MaskSpec(True, None, SEGMENTS, SEGMENTS, POSITIONS, POSITIONS),
        lambda b, s, t: t <= s and SEGMENTS[b, s] == SEGMENTS[b, t],
    ),
    "positions": (
        MaskSpec(causal=True, q_positions=POSITIONS, kv_positions=np.arange(6)[None]),
        lambda b, s, t: t <= POSITIONS[b, s],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name):
    mask, visible = CASES[name]
    q, k, v = rand(2, 6, 4, 8), rand(2, 6, 2, 8, seed=1), rand(2, 6, 2, 8, seed=2)
    got = jax.jit(attention)(q, k, v, mask)
    np.testing.assert_allclose(got, reference(q, k, v, visible), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_head_by_head_is_the_same_in_both_directions(name, monkeypatch):
    mask, _ = CASES[name]
    qkv = rand(2, 6, 4, 8), rand(2, 6, 2, 8, seed=1), rand(2, 6, 2, 8, seed=2)

    def both():
        out, back = jax.vjp(lambda *qkv: attention(*qkv, mask), *qkv)
        return out, *back(rand(*out.shape, seed=3))

    whole = both()
    monkeypatch.setattr(module, "_LARGE", 1)
    monkeypatch.setattr(module, "_BLOCK", 4)  # of 6 queries: a whole block and a part of one
    for one, other in zip(both(), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_cross_attention_hides_padding():
    q, k, v = rand(2, 3, 2, 4), rand(2, 5, 2, 4, seed=1), rand(2, 5, 2, 4, seed=2)
    keys = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    mask = MaskSpec(q_segment_ids=np.ones((2, 3), int), kv_segment_ids=keys)
    want = reference(q, k, v, lambda b, s, t: bool(keys[b, t]))
    np.testing.assert_allclose(attention(q, k, v, mask), want, atol=1e-5)


def test_a_query_that_sees_nothing_stays_finite_in_both_directions():
    q, k, v = rand(1, 2, 1, 4), rand(1, 2, 1, 4, seed=1), rand(1, 2, 1, 4, seed=2)
    ids = jnp.array([[3, 4]])
    mask = MaskSpec(q_segment_ids=ids, kv_segment_ids=jnp.zeros_like(ids))
    value, grad = jax.value_and_grad(lambda q: attention(q, k, v, mask).sum())(q)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_scores_are_f32():
    q, k, v = rand(1, 64, 1, 16), rand(1, 64, 1, 16, seed=1), rand(1, 64, 1, 16, seed=2)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    got = attention(*low, MaskSpec(causal=True))
    assert got.dtype == jnp.bfloat16
    want = attention(*(x.astype(jnp.float32) for x in low), MaskSpec(causal=True))
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_segment_ids_come_in_pairs():
    with pytest.raises(ValueError, match="q_segment_ids and kv_segment_ids"):
        MaskSpec(q_segment_ids=SEGMENTS).dense(6, 6)
