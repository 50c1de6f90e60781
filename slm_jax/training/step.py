"""One training step: loss, gradient, accumulation, update; pure, and jitted over the mesh.

Losses are named (sum, weight) pairs. Their weights depend on the batch alone, so each sum is
divided by the weight of the whole global batch before it is differentiated: the gradient is that
of the full batch however it is cut into microbatches or over hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from slm_jax.nn import tree
from slm_jax.training import skipstep
from slm_jax.training.digest import digest

Batch = Mapping[str, jax.Array]
State = dict[str, Any]
# (params, reference params, batch, key) -> {name: sum over the batch's targets}; what is done in
# training alone (dropout, label smoothing, z-loss) is done with a key and left out without one
LossSums = Callable[[tree.Params, tree.Params, Batch, jax.Array | None], Mapping[str, jax.Array]]
# batch -> {name: weight of those targets}
LossWeights = Callable[[Batch], Mapping[str, jax.Array]]


def split(params: tree.Params, trainable: frozenset[str]) -> tuple[tree.Params, tree.Params]:
    """(trainable, frozen) parts of a parameter tree, by path."""
    flat = tree.flatten(params)
    held = {path: value for path, value in flat.items() if path not in trainable}
    moving = {path: value for path, value in flat.items() if path in trainable}
    return tree.unflatten(moving), tree.unflatten(held)


def join(left: tree.Params, right: tree.Params) -> tree.Params:
    """Undoes `split`."""
    return tree.unflatten(tree.flatten(left) | tree.flatten(right))


def microbatches(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...], without moving a row to another device.

    Microbatch m has rows m, m + count, ...: those are rows of every device, where a plain reshape
    would give each microbatch the rows of a few devices.
    """
    return {
        name: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        for name, x in batch.items()
    }


def make_step(
    sums: LossSums,
    weights: LossWeights,
    coefficients: Mapping[str, float],
    optimizer: optax.GradientTransformation,
    trainable: frozenset[str],
    accumulate: int = 1,
    seed: int = 0,
    ema: float = 0.0,
) -> Callable[[State, Batch, tree.Params], tuple[State, dict[str, Any]]]:
    """Builds (state, batch, reference) -> (state, metrics), to be jitted with the state donated.

    Args:
      sums, weights: the two halves of the named losses.
      coefficients: what each named mean counts for in the objective; a name that is not there is
        measured only.
      optimizer: over the trainable part of the parameters.
      trainable: paths of the parameters that move; gradients exist for no others.
      accumulate: microbatches; divides the rows of each device.
      seed: of chance in the model, whose key is folded from it, the step and the microbatch: the
        same on any mesh, and after a restart.
      ema: how much of the average stays, where the state has one; less in its first steps,
        (1 + n) / (10 + n) after n of them, so that it forgets where it began.

    Returns:
      A step whose metrics are {"losses": {name: (sum, weight)}, "objective", "grad_norm",
      "finite", "digest" (of the batch), "skipped" (where spikes are left out)}. When the objective
      or the gradient is not finite, "finite" is False and parameters and optimizer stay as they
      were.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: State, batch: Batch, reference: tree.Params) -> tuple[State, dict[str, Any]]:
        moving, held = split(state["params"], trainable)
        totals = weights(batch)
        scales = {
            name: coefficients[name] / jnp.maximum(total, 1e-6)
            for name, total in totals.items()
            if name in coefficients
        }

        own = jax.random.fold_in(jax.random.key(seed), state["step"])

        def objective(moving: tree.Params, rows: Batch, number: Any) -> tuple[jax.Array, Mapping]:
            key = jax.random.fold_in(own, number)
            found = sums(join(moving, held), reference, rows, key)
            return sum(scales[name] * found[name] for name in scales), found

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1:
            (value, found), gradient = differentiate(moving, batch, 0)
        else:

            def add(total: Any, piece: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, differentiate(moving, *piece)), None

            pieces = microbatches(batch, accumulate), jnp.arange(accumulate)
            first = jax.tree.map(lambda x: x[0], pieces)
            shapes = jax.eval_shape(differentiate, moving, *first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((value, found), gradient), _ = jax.lax.scan(add, zeros, pieces)

        updates, opt = optimizer.update(gradient, state["opt"], moving, value=value)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updated = {"moving": optax.apply_updates(moving, updates), "opt": opt}
        before = {"moving": moving, "opt": state["opt"]}
        if "ema" in state:
            stays = jnp.minimum(ema, (1 + state["step"]) / (10 + state["step"]))
            before["ema"] = state["ema"]
            updated["ema"] = optax.incremental_update(updated["moving"], before["ema"], 1 - stays)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, before)
        metrics = {
            "losses": {name: (found[name], totals[name]) for name in totals},
            "objective": value,
            "grad_norm": norm,
            "finite": finite,
            "digest": digest(batch),
        }
        if isinstance(opt, skipstep.State):
            metrics["skipped"] = after["opt"].skipped
        params = join(after.pop("moving"), held)
        return {"params": params, **after, "step": state["step"] + 1}, metrics

    return step


def make_evaluation(
    sums: LossSums, weights: LossWeights
) -> Callable[[tree.Params, Batch, tree.Params], dict[str, tuple[jax.Array, jax.Array]]]:
    """Builds (params, batch, reference) -> {name: (sum, weight)}."""

    def evaluate(params: tree.Params, batch: Batch, reference: tree.Params) -> dict[str, Any]:
        found, totals = sums(params, reference, batch, None), weights(batch)
        return {name: (found[name], totals[name]) for name in totals}

    return evaluate
