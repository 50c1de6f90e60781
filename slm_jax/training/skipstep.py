"""Leaves out the updates of steps whose loss or gradient jumps, around any optax optimizer.

The idea is of OLMo 2 (2024, arXiv:2501.00656) and Levanter's `skip_step`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class SkipSpikes:
    """Which steps are left out.

    A loss that stays high is let through: k of them in the window lift the mean and the deviation
    until the next is no spike, from k = window / threshold^2 on, 4 by default.

    Attributes:
      window: steps whose losses and gradient norms are remembered, those left out included. None
        is left out before half of the window is full.
      threshold: standard deviations over the window's mean from which a step is left out.
    """

    window: int = 128
    threshold: float = 6.0

    def __post_init__(self) -> None:
        if self.window < 4:
            raise ValueError(f"window must be at least 4, got {self.window}")
        if not self.threshold > 0:
            raise ValueError(f"threshold must be above 0, got {self.threshold}")


class State(NamedTuple):
    """Of the wrapper.

    Attributes:
      inner: of the optimizer.
      recent: losses and gradient norms of the window [2, window], float32; step n is at n % window.
      seen: steps, those left out included, int32.
      skipped: steps left out, int32.
    """

    inner: Any
    recent: jax.Array
    seen: jax.Array
    skipped: jax.Array


def skip_spikes(
    inner: optax.GradientTransformation, config: SkipSpikes | None
) -> optax.GradientTransformation:
    """`inner`, left out at a spike: no weight moves then, and its state stays as it was.

    `update` wants the loss as `value`. None for `config` gives back `inner`.
    """
    if config is None:
        return inner
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> State:
        zero = jnp.zeros((), jnp.int32)
        recent = jnp.zeros((2, config.window), jnp.float32)
        return State(inner.init(params), recent, zero, zero)

    def update(
        gradient: optax.Updates,
        state: State,
        params: optax.Params | None = None,
        *,
        value: jax.Array,
        **more: Any,
    ) -> tuple[optax.Updates, State]:
        now = jnp.stack([value, optax.global_norm(gradient)]).astype(jnp.float32)
        held = jnp.arange(config.window) < state.seen
        mean = state.recent.mean(1, where=held)
        limit = mean + config.threshold * state.recent.std(1, where=held)
        spike = (state.seen >= config.window // 2) & (now > limit).any()
        updates, after = inner.update(gradient, state.inner, params, value=value, **more)
        updates = jax.tree.map(lambda x: jnp.where(spike, jnp.zeros_like(x), x), updates)
        kept = jax.tree.map(lambda new, old: jnp.where(spike, old, new), after, state.inner)
        recent = state.recent.at[:, state.seen % config.window].set(now)
        return updates, State(kept, recent, state.seen + 1, state.skipped + spike)

    return optax.GradientTransformationExtraArgs(init, update)
