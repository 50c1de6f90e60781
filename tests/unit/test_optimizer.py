"""Schedule values, the decay mask, and one AdamW step against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.training import optimizer
from slm_jax.training.optimizer import Optimizer


def test_schedule_rises_then_falls_on_a_cosine():
    rate = optimizer.schedule(Optimizer(learning_rate=1.0, warmup_steps=10), steps=110)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(0.55)  # half way: the mean of 1.0 and 0.1
    assert float(rate(110)) == pytest.approx(0.1)


def test_schedule_of_a_job_shorter_than_its_warmup():
    rate = optimizer.schedule(Optimizer(learning_rate=1.0, warmup_steps=10), steps=3)
    assert all(0 < float(rate(step)) <= 1 for step in range(4))


def test_norms_and_biases_do_not_decay():
    params = {"layers": {"norm": {"scale": 1}, "q": {"kernel": 1, "bias": 1, "lora_a": 1}}}
    mask = optimizer.decay_mask(params)
    assert mask == {
        "layers": {"norm": {"scale": False}, "q": {"kernel": True, "bias": False, "lora_a": True}}
    }


def test_first_step_is_adamw_with_a_clipped_gradient():
    config = Optimizer(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0)
    update = optimizer.make(config, steps=10)
    params = {"a": {"kernel": jnp.array([2.0, -2.0])}, "b": {"bias": jnp.array([4.0])}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"bias": jnp.array([-4.0])}}
    updates, _ = update.update(grads, update.init(params), params)
    # Adam's first step is the gradient's sign; decay is learning_rate * weight_decay * weight.
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.1 - 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["bias"], [0.1], rtol=1e-5)


def test_new_parameters_have_a_learning_rate_of_their_own():
    config = Optimizer(learning_rate=0.1, new_scale=3.0, warmup_steps=0, weight_decay=0.0)
    update = optimizer.make(config, steps=10)
    params = {"backbone": {"kernel": jnp.ones(1)}, "heads": {"kernel": jnp.ones(1)}}
    updates, _ = update.update(params, update.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["kernel"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["heads"]["kernel"], [-0.3], rtol=1e-5)


@pytest.mark.parametrize("bad", [{"learning_rate": 0.0}, {"b1": 1.1}, {"warmup_steps": -1}])
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Optimizer(**bad)
