"""Arithmetic of a step, counted from the model's sizes: causal, packed, what is really needed.

XLA's own count is no use here (it counts the body of a scan once), and published formulas differ
by up to two times (full or causal attention, padding or not), so this one says what it counts:
two operations a multiply-add, matrix products alone, attention over half of each segment's
square, nothing for padding or recomputation. `counted` takes any function instead: padding and
whole squares included, what `remat` has the backward pass compute again still left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from slm_jax.models.backbone import BackboneConfig
from slm_jax.nn import attention, remat
from slm_jax.training import chips

# Of a `SpeechLM`: what they compute goes into the loss alone.
_HEADS = ("backbone/head/", "heads/")


def forward(config: BackboneConfig, segments: np.ndarray, codebooks: Sequence[int] = ()) -> float:
    """Operations of one forward pass.

    Args:
      config: the backbone.
      segments: lengths in columns of the packed records.
      codebooks: classes of each speech head.
    """
    weights = sum(sum(part.values()) for part in _weights(config, codebooks))
    return 2 * np.sum(segments, dtype=float) * weights + _attention(config, segments)


def step(
    config: BackboneConfig,
    segments: np.ndarray,
    codebooks: Sequence[int] = (),
    reference: bool = False,
    moving: Collection[str] | None = None,
) -> float:
    """Operations of a training step.

    Backwards, a product costs its forward once for its weights, if they move, and once for what it
    reads, if something moves below it; attention costs its forward twice. A KL reference costs one
    forward.

    Args:
      config, segments, codebooks: as of `forward`.
      reference: whether there is one.
      moving: paths in a `SpeechLM` of the weights that the optimizer changes; None for all.
    """
    layers, heads = _weights(config, codebooks)
    scores = _attention(config, segments)

    def trained(weights: Mapping[str, int]) -> int:
        moves = (p for p in weights if moving is None or any(m.startswith(p) for m in moving))
        return sum(weights[path] for path in moves)

    def below(*these: str) -> bool:
        return moving is None or not all(path.startswith(these) for path in moving)

    backward = trained(layers) + trained(heads)
    backward += sum(heads.values()) if below(*_HEADS) else 0
    through = below(*_HEADS, "backbone/norm/")
    backward += sum(layers.values()) if through else 0
    products = 2 * np.sum(segments, dtype=float) * backward + 2 * scores * through
    return (1 + reference) * forward(config, segments, codebooks) + products


def _weights(
    config: BackboneConfig, codebooks: Sequence[int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds of a column, by the path of the weight: in the layers, and in the heads."""
    width, rank, mlp = config.width, config.lora_rank, config.mlp_width
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "attention/q": (width, query), "attention/k": (width, key), "attention/v": (width, key),
        "attention/o": (query, width), "mlp/gate": (width, mlp), "mlp/up": (width, mlp),
        "mlp/down": (mlp, width),
    }  # fmt: skip
    layers = {}
    for name, (inputs, outputs) in sizes.items():
        path = f"backbone/layers/{name}"
        layers[f"{path}/kernel"] = config.layers * inputs * outputs
        if rank:
            layers[f"{path}/lora_a"] = config.layers * inputs * rank
            layers[f"{path}/lora_b"] = config.layers * rank * outputs
    text = "embedding/embedding" if config.tie_embeddings else "head/kernel"
    speech = width * sum(codebooks)
    return layers, {f"backbone/{text}": width * config.vocab_size, "heads/": speech}


def _attention(config: BackboneConfig, segments: np.ndarray) -> float:
    """Operations of scores and of what they weigh, of all layers."""
    seen = np.minimum(segments, config.window or np.inf)  # columns that the last column sees
    pairs = np.sum(segments * seen - seen**2 / 2, dtype=float)
    return float(config.layers * 4 * config.heads * config.head_dim * pairs)


def counted(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the products that the results of `function(*args)` need; traced, not run.

    Each once: layers are traced as if they kept everything for the backward pass.

    Args:
      args: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: a product stands in a loop whose length is not known.
    """
    with attention.using("xla"), remat.ignored():  # inside a kernel no products can be seen
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
    """Dense bfloat16 operations a second of one chip, None where unknown."""
    chip = chips.of_kind(device_kind)
    return chip and chip.peak
