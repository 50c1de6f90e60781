"""slm_jax: train speech language models in JAX."""
