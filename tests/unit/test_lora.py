"""LoRA merged: exactly, and where a checkpoint is read to speak."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_job
from flax import nnx

from slm_jax import config
from slm_jax.decoding.load import load_model
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.nn import lora, tree
from slm_jax.training.checkpoint import Checkpoints, Store

CONFIG = BackboneConfig(
    vocab_size=0, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48,
    lora_rank=3, lora_alpha=5.0,
)  # fmt: skip


def random(abstract, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), abstract)


def test_merged_weights_are_the_sum_in_f64_rounded_once():
    graphdef, abstract = tree.pure_params(nnx.eval_shape(lambda: Backbone(CONFIG, nnx.Rngs(0))))
    params = random(abstract)
    before = tree.flatten(params)
    merged = tree.flatten(lora.merged(params, CONFIG.lora_alpha, CONFIG.lora_rank))
    assert merged.keys() == {name for name in before if not name.endswith(("lora_a", "lora_b"))}
    for name, value in merged.items():
        wide = np.asarray(before[name], np.float64)
        if name.endswith("kernel"):
            stem = name.removesuffix("kernel")
            a, b = (np.asarray(before[f"{stem}lora_{part}"], np.float64) for part in "ab")
            wide = wide + a @ b * 5.0 / 3
        np.testing.assert_allclose(value, wide, rtol=1e-6, atol=1e-6)
    x = random(jax.ShapeDtypeStruct((2, 7, 32), jnp.float32), 1)
    positions = np.tile(np.arange(7), (2, 1))
    plain, _ = tree.pure_params(
        nnx.eval_shape(lambda: Backbone(dataclasses.replace(CONFIG, lora_rank=0), nnx.Rngs(0)))
    )

    @jax.jit
    def both(params, merged):
        return tree.merge(graphdef, params)(x, positions), tree.merge(plain, merged)(x, positions)

    (want, _), (got, _) = both(params, tree.unflatten(merged))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert float(jnp.abs(want).max()) > 1


def test_bfloat16_kernels_are_rounded_once():
    rng = np.random.default_rng(0)
    kernel, a, b = (rng.normal(0, 0.3, shape) for shape in ((16, 8), (16, 2), (2, 8)))
    params = {"kernel": kernel, "lora_a": a, "lora_b": b}
    half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in params.items()}
    wide = {name: np.asarray(x, np.float64) for name, x in half.items()}
    got = lora.merged({"q": half}, 4.0, 2)["q"]["kernel"]
    want = jnp.asarray(wide["kernel"] + 2 * wide["lora_a"] @ wide["lora_b"], jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


def test_a_checkpoint_speaks_with_merged_weights(tmp_path):
    job = config.loads(tiny_job.gin(tmp_path / "data", tmp_path))
    abstract = tree.pure_params(nnx.eval_shape(lambda: job.system.build(nnx.Rngs(0))))[1]
    params = random(abstract)
    now = {"params": params, "opt": {"none": jnp.zeros(1)}, "step": jnp.int32(1)}
    with Store(tmp_path, Checkpoints()) as store:
        store.save(now, 1, {"config": config.dump(job), "streams": {}}, force=True)
    backbone = job.system.model.backbone
    model = load_model(tmp_path).model
    assert model.config.backbone == dataclasses.replace(backbone, lora_rank=0)
    want = lora.merged(params, backbone.lora_alpha, backbone.lora_rank)
    jax.tree.map(np.testing.assert_array_equal, tree.pure_params(model)[1], want)
