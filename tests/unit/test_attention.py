import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slm_jax.nn.attention as module
from slm_jax.nn import flash, head_by_head, splash
from slm_jax.nn.attention import MaskSpec, attention, choose, platform, using
from slm_jax.training.partitioning import Parallel, make_mesh


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


MASKS = {name: mask for name, (mask, _) in CASES.items()} | {
    "packed by place": MaskSpec(True, None, SEGMENTS, SEGMENTS),
    "nothing to see": MaskSpec(q_segment_ids=SEGMENTS, kv_segment_ids=SEGMENTS + 1),
}


@pytest.mark.parametrize("name", MASKS)
def test_head_by_head_is_the_same_in_both_directions(name, monkeypatch):
    mask = MASKS[name]
    qkv = rand(2, 6, 4, 8), rand(2, 6, 2, 8, seed=1), rand(2, 6, 2, 8, seed=2)

    def both():
        out, back = jax.vjp(lambda *qkv: attention(*qkv, mask), *qkv)
        return out, *back(rand(*out.shape, seed=3))

    whole = both()
    monkeypatch.setattr(module, "_LARGE", 1)
    monkeypatch.setattr(head_by_head, "_BLOCK", 4)  # of 6 queries: a whole block and a part of one
    for one, other in zip(both(), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


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


RECORDS = (100, 116)  # columns of those packed into a row of ROW
ROW = 256
ROW_IDS = np.repeat([1, 2, 0], (*RECORDS, ROW - sum(RECORDS)))[None].astype(np.int32)


def packed_qkv(rows=1):
    return rand(rows, ROW, 4, 64), rand(rows, ROW, 2, 64, seed=1), rand(rows, ROW, 2, 64, seed=2)


def by_splash(q, k, v, mask):
    return splash.attention(q, k, v, mask.q_segment_ids, window=mask.window, interpret=True)


def by_xla(q, k, v, mask):
    with using("xla"):
        return attention(q, k, v, mask)


def by_flash(q, k, v, mask):
    return flash.attention(q, k, v, mask.q_segment_ids, interpret=True)


@pytest.mark.parametrize(
    ("backend", "window"),
    [*itertools.product([attention, by_xla, by_splash], [None, 70]), (by_flash, None)],
)
def test_packed_records_are_what_they_are_alone(backend, window):
    qkv = packed_qkv()
    mask = MaskSpec(True, window, ROW_IDS, ROW_IDS)
    packed = jax.jit(lambda *qkv: backend(*qkv, mask))(*qkv)
    start = 0
    for length in RECORDS:
        here = slice(start, start + length)
        alone = MaskSpec(causal=True, window=window)
        with using("xla"):
            want = attention(*(x[:, here] for x in qkv), alone)
        np.testing.assert_allclose(packed[:, here], want, atol=2e-5)
        start = here.stop


@pytest.mark.parametrize(
    ("backend", "window", "context"), [(by_splash, 70, 2), (by_flash, None, 1)]
)
def test_kernels_are_the_same_in_both_directions_on_every_axis_of_a_mesh(backend, window, context):
    qkv = packed_qkv(rows=2)
    ids = jnp.concatenate([ROW_IDS, np.ones_like(ROW_IDS)])
    mask = MaskSpec(True, window, ids, ids)
    back = rand(2, ROW, 4, 64, seed=3)

    def both(backend):
        out, pull = jax.vjp(lambda *qkv: backend(*qkv, mask), *qkv)
        return out, *pull(back)

    mesh = make_mesh(Parallel(fsdp=2, tensor=2, context=context), jax.devices()[: 4 * context])
    with jax.set_mesh(mesh):
        got = jax.jit(lambda: both(backend))()
    for one, other in zip(got, both(by_xla), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


IDS = jnp.ones((2, ROW), int)
SEGMENTED = MaskSpec(True, None, IDS, IDS)
PLAIN = MaskSpec(causal=True)
CHOICES = [  # platform, mask, columns, head_dim, dtype, which
    ("cpu", SEGMENTED, 256, 64, "bfloat16", "xla"),
    ("tpu", SEGMENTED, 256, 64, "bfloat16", "splash"),
    ("tpu", SEGMENTED, 256, 128, "float32", "splash"),
    ("tpu", MaskSpec(True, 70, IDS, IDS), 256, 64, "bfloat16", "splash"),
    ("tpu", SEGMENTED, 250, 64, "bfloat16", "xla"),  # no whole blocks
    ("tpu", SEGMENTED, 256, 32, "bfloat16", "xla"),
    ("tpu", MaskSpec(q_segment_ids=IDS, kv_segment_ids=IDS), 256, 64, "bfloat16", "xla"),
    ("tpu", MaskSpec(True, None, IDS, IDS + 0), 256, 64, "bfloat16", "xla"),
    ("tpu", MaskSpec(True, q_positions=IDS), 256, 64, "bfloat16", "xla"),  # a cache
    ("gpu", SEGMENTED, 256, 64, "bfloat16", "flash"),  # of which cuDNN knows nothing
    ("gpu", SEGMENTED, 256, 96, "float16", "flash"),
    ("gpu", SEGMENTED, 250, 64, "bfloat16", "xla"),
    ("gpu", SEGMENTED, 256, 256, "bfloat16", "xla"),
    ("gpu", SEGMENTED, 256, 64, "float32", "xla"),
    ("gpu", MaskSpec(True, 70, IDS, IDS), 256, 64, "bfloat16", "xla"),
    ("gpu", MaskSpec(True, None, IDS, IDS + 0), 256, 64, "bfloat16", "xla"),
    ("gpu", PLAIN, 250, 64, "bfloat16", "cudnn"),
    ("gpu", PLAIN, 33, 64, "bfloat16", "xla"),
    ("gpu", PLAIN, 256, 256, "bfloat16", "xla"),
    ("gpu", PLAIN, 256, 64, "float32", "xla"),
    ("gpu", MaskSpec(), 256, 64, "bfloat16", "xla"),
]


@pytest.mark.parametrize(("on", "mask", "columns", "width", "dtype", "which"), CHOICES)
def test_no_backend_is_chosen_that_ignores_a_part_of_the_mask(
    on, mask, columns, width, dtype, which
):
    q = jax.ShapeDtypeStruct((2, columns, 4, width), dtype)
    k = jax.ShapeDtypeStruct((2, columns, 2, width), dtype)
    assert choose(q, k, mask, on) == which


@pytest.mark.parametrize(("on", "kernel"), [("tpu", "splash"), ("gpu", "flash")])
def test_kernels_leave_a_mesh_that_does_not_divide_the_heads_to_xla(on, kernel):
    q, k = (jax.ShapeDtypeStruct((4, ROW, heads, 64), jnp.bfloat16) for heads in (4, 2))
    with jax.set_mesh(make_mesh(Parallel(fsdp=4, tensor=2))):
        assert choose(q, k, SEGMENTED, on) == kernel
    with jax.set_mesh(make_mesh(Parallel(fsdp=2, tensor=4))):
        assert choose(q, k, SEGMENTED, on) == "xla"
    with jax.set_mesh(make_mesh(Parallel(fsdp=8))):
        assert choose(q, k, SEGMENTED, on) == "xla"  # nor the rows
    with jax.set_mesh(make_mesh(Parallel(fsdp=2, context=4))):
        assert choose(q, k, SEGMENTED, on) == "xla"  # nor whole blocks of the columns


def test_platform_is_that_of_the_mesh():
    assert platform() == jax.default_backend()
    chip = jax.sharding.AbstractDevice(device_kind="TPU v5", platform="tpu", num_cores=1)
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
