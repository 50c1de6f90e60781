"""How weights move: the update rule, its learning rates by step and weight, what is held still."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training.skipstep import SkipSpikes, skip_spikes

# Weights that decay: matrices, by the last part of their path. Norm scales and biases do not,
# and their rank does not tell, because stacked layers add an axis.
DECAYED = ("kernel", "embedding", "lora_a", "lora_b")
# Parts of the paths of output layers, which Muon leaves to AdamW.
HEADS = {"head", "heads"}
MUON_RMS = 0.2  # of an update, which is AdamW's (Liu et al. 2025, arXiv:2502.16982 §2.2)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What `make` makes of gradients.

    All kinds move weights by about the learning rate a step; Lion wants a third to a tenth of that
    of the others. All decay weights by the learning rate times `weight_decay`.

    Attributes:
      kind: "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101); "lion" (Chen et al. 2023,
        arXiv:2302.06675), with one moment; "adafactor" (Shazeer & Stern 2018, arXiv:1804.04235),
        whose second moments are a row and a column of each matrix, and which keeps no first ones
        at b1 = 0; "muon" (Jordan 2024) for the matrices of the layers, each layer's by itself, and
        AdamW for tables, heads, LoRA, norms and biases.
      learning_rate: the highest, reached after `warmup_steps`.
      new_scale: the learning rate of what the text LLM does not have (everything outside
        "backbone/") in units of `learning_rate`: it starts from random numbers, the LLM does not.
      groups: learning rates of single weights, likewise: regular expression over whole paths
        ("backbone/layers/mlp/.*") -> scale, the last that matches counting. What has 0 is held
        still: there is no gradient of it, and no moments.
      schedule: "cosine", or "wsd", which stays at the highest until it falls on a line (warmup,
        stable, decay: Hu et al. 2024, arXiv:2404.06395).
      decay_share: share of the steps in which "wsd" falls; 0 for a constant rate, 1 for one line
        down.
      final_fraction: of learning_rate, which is come to when the last step is done.
      b1: how much of the mean gradient stays from step to step; in Muon, too (usually 0.95).
      b2: of its square (AdamW), or of what Lion keeps.
      epsilon: of AdamW.
      clip_norm: the gradient's global norm is cut down to this.
      ema: how much of an exponential moving average of the weights stays from step to step, beside
        the weights, for evaluation and decoding; 0 keeps none.
      skip: which steps are left out as spikes of the loss; None for none.
    """

    kind: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-3
    new_scale: float = 1.0
    groups: Mapping[str, float] = dataclasses.field(default_factory=dict)
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 10
    decay_share: float = 0.2
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.0
    skip: SkipSpikes | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "new_scale", "epsilon", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("final_fraction", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("b1", "b2", "ema"):  # at 1 nothing new is let in, and Adam divides by zero
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        for pattern, scale in self.groups.items():
            if scale < 0:
                raise ValueError(f"groups must not be negative, got {scale} for {pattern!r}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"groups: {pattern!r} is no regular expression ({error})"
                ) from None

    def scale(self, path: str) -> float:
        """The learning rate of the weight at `path` in units of `learning_rate`."""
        found = 1.0 if path.startswith("backbone/") else self.new_scale
        for pattern, scale in self.groups.items():
            if re.fullmatch(pattern, path):
                found = scale
        return found


def moving(config: Optimizer, paths: Iterable[str]) -> frozenset[str]:
    """Those of the weights at `paths` that are not held still.

    Raises:
      UserError: a pattern of `Optimizer.groups` matches none of them, or none is left.
    """
    paths = sorted(paths)
    for pattern in config.groups:
        if not any(re.fullmatch(pattern, path) for path in paths):
            near = ", ".join(difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0))
            raise UserError(
                f"Optimizer.groups: {pattern!r} matches no weight that this job trains",
                f"Nearest: {near}. It is a regular expression over the whole path; `.*` stands for "
                "any text.",
            )
    found = frozenset(path for path in paths if config.scale(path))
    if not found:
        raise UserError(
            "Optimizer.groups holds every weight still", "Give some weights a scale above 0."
        )
    return found


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step of a job of `steps` steps: a linear rise, then what `schedule` says."""
    warmup = min(config.warmup_steps, steps)
    peak, start = config.learning_rate, config.learning_rate / max(warmup, 1)
    final = peak * config.final_fraction
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            start, peak, warmup, max(steps, warmup + 1), end_value=final
        )
    falling = min(round(config.decay_share * steps), steps - warmup)
    return optax.join_schedules(
        [optax.linear_schedule(start, peak, warmup), optax.linear_schedule(peak, final, falling)],
        [steps - falling],
    )


def make(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The update rule for a job of `steps` steps; parameters are nested dicts by name."""

    def scaled(path: str, update: jax.Array) -> jax.Array:
        return update * config.scale(path)

    update = optax.chain(
        optax.stateless(functools.partial(_clip, config.clip_norm)),
        optax.chain(
            _direction(config),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            optax.scale_by_learning_rate(schedule(config, steps)),
        ),
        optax.masked(
            optax.stateless(lambda updates, _: _by_path(scaled, updates)),
            lambda params: _by_path(lambda path, _: config.scale(path) != 1, params),
        ),
    )
    return skip_spikes(update, config.skip)


def decay_mask(params: tree.Params) -> tree.Params:
    """True where weight decay applies."""
    return _by_path(lambda path, _: path.rpartition("/")[2] in DECAYED, params)


def _clip(most: float, gradient: tree.Params, _: Any) -> tree.Params:
    """The gradient, scaled down to a global norm of `most` where it is larger.

    As one factor: a quotient (`optax.clip_by_global_norm`), which XLA does not compute twice, is
    written out before moments and weights read it, a third of what an update reads and writes.
    """
    scale = jnp.minimum(1.0, most / optax.global_norm(gradient))
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), gradient)


def _direction(config: Optimizer) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    if config.kind == "lion":
        return optax.scale_by_lion(config.b1, config.b2)
    if config.kind == "adafactor":
        # Without its own step size, which is relative to the weights, and its sign, so that
        # learning_rate and weight_decay mean what they mean to the others.
        own = optax.adafactor(None, multiply_by_parameter_scale=False, momentum=config.b1 or None)
        return optax.chain(own, optax.scale(-1.0))
    if config.kind == "muon":
        return optax.partition({"muon": _muon(config), "adamw": adam}, _muon_or_adamw)
    return adam


def _muon(config: Optimizer) -> optax.GradientTransformation:
    """Of kernels [..., in, out]; the axes before these are of layers, each orthogonalised alone."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1,
            weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: numbers, updates),
        ),
        optax.stateless_with_tree_map(lambda x, _: x * MUON_RMS * max(x.shape[-2:]) ** 0.5),
    )


def _muon_or_adamw(params: tree.Params) -> tree.Params:
    def label(path: str, _: jax.Array) -> str:
        *parents, name = path.split("/")
        return "muon" if name == "kernel" and not HEADS & set(parents) else "adamw"

    return _by_path(label, params)


def _by_path(function: Callable[[str, Any], Any], params: tree.Params) -> tree.Params:
    """`function(path, leaf)` of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function("/".join(key.key for key in keys), leaf), params
    )
