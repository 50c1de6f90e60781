import jax.numpy as jnp
import numpy as np
import torch
from transformers.generation import logits_process as reference

from slm_jax.decoding import samplers

LOGITS = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * 3
IDS = np.random.default_rng(1).integers(0, 50, (4, 12))


def run(processor):
    return processor(torch.tensor(IDS), torch.tensor(LOGITS.copy())).numpy()


def test_repetition_penalty_equals_transformers():
    seen = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen, IDS, True, 1)
    ours = samplers.penalize(jnp.asarray(LOGITS), jnp.asarray(seen), 1.1)
    theirs = run(reference.RepetitionPenaltyLogitsProcessor(1.1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_top_p_and_top_k_equal_transformers():
    for p in (0.3, 0.7, 0.95):
        theirs = run(reference.TopPLogitsWarper(p))
        np.testing.assert_array_equal(samplers.keep_top_p(jnp.asarray(LOGITS), p), theirs)
    for k in (1, 5, 49):
        theirs = run(reference.TopKLogitsWarper(k))
        np.testing.assert_array_equal(samplers.keep_top_k(jnp.asarray(LOGITS), k), theirs)
