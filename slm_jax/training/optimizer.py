"""AdamW with warmup, cosine decay and a clipped gradient."""

from __future__ import annotations

import dataclasses

import jax
import optax

from slm_jax.nn import tree

# Weights that decay: matrices, by the last part of their path. Norm scales and biases do not,
# and their rank does not tell, because stacked layers add an axis.
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Attributes:
      learning_rate: the highest, reached after `warmup_steps`.
      new_scale: the learning rate of what the text LLM does not have (everything outside
        "backbone/") in units of `learning_rate`: it starts from random numbers, the LLM does not.
      final_fraction: of learning_rate, at the last step of the cosine.
      clip_norm: the gradient's global norm is cut down to this.
    """

    learning_rate: float = 1e-3
    new_scale: float = 1.0
    warmup_steps: int = 10
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "new_scale", "epsilon", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("b1", "b2", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear rise over warmup_steps, then a cosine until `steps`."""
    warmup = min(config.warmup_steps, steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def make(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The update rule for a job of `steps` steps; parameters are nested dicts by name."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
        optax.masked(optax.scale(config.new_scale), new_mask),
    )


def new_mask(params: tree.Params) -> tree.Params:
    """True for what the text LLM does not have."""
    return {
        name: jax.tree.map(lambda _, new=name != "backbone": new, part)
        for name, part in params.items()
    }


def decay_mask(params: tree.Params) -> tree.Params:
    """True where weight decay applies."""

    def decays(path: tuple[jax.tree_util.DictKey, ...], _: jax.Array) -> bool:
        return path[-1].key in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)
