"""Training in bfloat16: what stays in float32, down to the sums over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_job
from jax.experimental.compilation_cache import compilation_cache

from slm_jax import config
from slm_jax.nn import layers
from slm_jax.training import setup


def test_gradient_of_a_kernel_is_not_rounded():
    draw = np.random.default_rng(0)
    x, g = (jnp.asarray(draw.standard_normal((4, 64, n)), jnp.bfloat16) for n in (8, 6))
    kernel = jnp.asarray(draw.standard_normal((8, 6)), jnp.float32)
    y, back = jax.vjp(layers.product, x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x @ kernel.astype(jnp.bfloat16))
    dx, found = back(g)
    assert (dx.dtype, found.dtype) == (jnp.bfloat16, jnp.float32)
    exact = np.einsum("bsi,bso->io", np.asarray(x, np.float64), np.asarray(g, np.float64))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dx, g @ kernel.astype(jnp.bfloat16).T)


def test_in_float32_a_product_is_that_of_jax():
    draw = np.random.default_rng(0)
    x, kernel, g = (
        jnp.asarray(draw.standard_normal(shape), jnp.float32)
        for shape in ((2, 3, 8), (8, 6), (2, 3, 6))
    )
    (y, back), (want, rule) = (jax.vjp(f, x, kernel) for f in (layers.product, jnp.matmul))
    np.testing.assert_array_equal(y, want)
    for found, wanted in zip(back(g), rule(g), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture
def uncached():
    """What comes from the cache of compiled programs is not dumped."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which asks once whether it is enabled
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_state_is_float32_and_devices_sum_float32(tmp_path, uncached):
    mesh = {"Parallel.fsdp": 4, "Parallel.rules": {"embed": "fsdp", "vocab": "fsdp"}}
    low = {"BackboneConfig.dtype": "bfloat16", "BackboneConfig.lora_rank": 0, "LossWeights.kl": 0.0}
    job = config.loads(tiny_job.gin("data", tmp_path, **low, **mesh))
    program = setup.make(job)
    floats = {x.dtype for x in jax.tree.leaves(program.state)} - {jnp.dtype(jnp.int32)}
    assert floats == {jnp.dtype(jnp.float32)}
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.state, program.batch, program.reference)
    assert "bf16" in lowered.as_text()
    # Later passes of the CPU's compiler turn bfloat16 into float32 anyway; this is before them.
    lowered.compile({"xla_dump_to": str(tmp_path / "hlo"), "xla_dump_hlo_pass_re": "spmd.*"})
    (partitioned,) = tmp_path.glob("hlo/*jit_step*after_spmd-partitioning*")
    summed = re.findall(r"= (\S+?)\[.* (?:all-reduce|reduce-scatter)\(", partitioned.read_text())
    assert "f32" in summed and "bf16" not in summed
