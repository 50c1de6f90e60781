"""Arithmetic of a step, counted from the model's sizes: causal, packed, what is really needed.

XLA's own count is no use here (it counts the body of a scan once), and published formulas differ
by up to two times (full or causal attention, padding or not), so this one says what it counts:
two operations a multiply-add, matrix products alone, attention over half of each segment's
square, nothing for padding or recomputation. `counted` takes any function instead, as it is:
padding, whole squares and recomputation included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from slm_jax.models.backbone import BackboneConfig
from slm_jax.nn import attention

# Dense bfloat16 operations a second and chip, by the start of jax's device_kind (vendor figures).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}


def forward(config: BackboneConfig, segments: np.ndarray, codebooks: Sequence[int] = ()) -> float:
    """Operations of one forward pass.

    Args:
      config: the backbone.
      segments: lengths in columns of the packed records.
      codebooks: classes of each speech head.
    """
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block = config.width * (2 * query + 2 * key + 3 * config.mlp_width)
    heads = config.width * (config.vocab_size + sum(codebooks))
    seen = np.minimum(segments, config.window or np.inf)  # columns that the last column sees
    pairs = np.sum(segments * seen - seen**2 / 2, dtype=float)
    products = 2 * np.sum(segments, dtype=float) * (config.layers * block + heads)
    return float(products + config.layers * 4 * query * pairs)


def step(
    config: BackboneConfig,
    segments: np.ndarray,
    codebooks: Sequence[int] = (),
    reference: bool = False,
) -> float:
    """Operations of a training step.

    The backward pass costs one forward for the activations, and one more for the weights unless
    LoRA holds them still; a KL reference costs one forward.
    """
    passes = (2 if config.lora_rank else 3) + reference
    return passes * forward(config, segments, codebooks)


def counted(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the products that the results of `function(*args)` need; traced, not run.

    Args:
      args: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: a product stands in a loop whose length is not known.
    """
    with attention.using("xla"):  # inside a kernel no products can be seen
        jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # What a gradient's rule makes for weights that are held still is never computed, as in XLA.
    return _products(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        inside = [_products(part) for part in _parts(equation.params.values())]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inside)
        elif equation.primitive.name == "while" and sum(inside):
            raise ValueError("products in a while loop cannot be counted")
        elif equation.primitive.name == "cond":
            total += max(inside)
        else:
            total += sum(inside)
    return total


def _parts(params: Any) -> list[Any]:
    """The programs among a primitive's parameters."""
    found = []
    for value in params:
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)  # a closed one holds it
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def segment_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """Lengths of the segments of packed rows; segment_ids int [B, S], 0 for padding."""
    counts = [np.bincount(row)[1:] for row in segment_ids]
    lengths = np.concatenate(counts) if counts else np.zeros(0, int)
    return lengths[lengths > 0]


def peak(device_kind: str) -> float | None:
    """Operations a second of one chip, None where unknown."""
    fits = [kind for kind in PEAKS if device_kind.startswith(kind)]
    return PEAKS[max(fits, key=len)] if fits else None
