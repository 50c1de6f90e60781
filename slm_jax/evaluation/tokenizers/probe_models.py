"""Small networks that are trained on tokens alone, to see what these say: the probes of DASB.

DASB (Mousavi et al. 2024, arXiv 2406.14294): embeddings of all levels, learned from nothing, are
summed with weights that an MLP gives each level, and a head follows, linear or a BiLSTM of two
layers. Widths here fit minutes of speech rather than hundreds of hours.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slm_jax.nn.codec_conv import within
from slm_jax.nn.layers import Embedding, Linear
from slm_jax.nn.lstm import LstmLayer, LstmState

Head = Literal["linear", "bilstm"]
HEADS: tuple[Head, ...] = ("linear", "bilstm")
_DROPOUT = 0.2


class CodeEntry(nnx.Module):
    """Codes int [B, T, K] -> [B, T, D]: a table a level, summed by attention over the levels."""

    def __init__(self, vocab: tuple[int, ...], width: int, *, rngs: nnx.Rngs):
        unit = jax.nn.initializers.normal(1.0)
        self.table = Embedding(sum(vocab), width, rngs=rngs, init=unit)
        self.hidden = Linear(width, width, rngs=rngs, bias=True)
        self.score = Linear(width, 1, rngs=rngs, bias=True)
        self.starts = tuple(int(n) for n in np.cumsum((0, *vocab[:-1])))

    def __call__(self, codes: jax.Array) -> jax.Array:
        levels = self.table(codes + jnp.array(self.starts))
        weights = jax.nn.softmax(self.score(jax.nn.relu(self.hidden(levels))), axis=2)
        return jnp.sum(weights * levels, axis=2)


class BiLstm(nnx.Module):
    """[B, T, D] -> [B, T, D], both ways over the first `lengths` [B] positions of each row."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.forth, self.back = LstmLayer(width, rngs=rngs), LstmLayer(width, rngs=rngs)
        self.join = Linear(2 * width, width, rngs=rngs, bias=True)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        zeros = jnp.zeros((x.shape[0], x.shape[2]))
        # The same order turned round twice is the order; what is beyond the end stays beyond it.
        at = jnp.arange(x.shape[1])[None]
        turned = jnp.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)[..., None]
        ahead, _ = self.forth(x, LstmState(zeros, zeros))
        behind, _ = self.back(jnp.take_along_axis(x, turned, 1), LstmState(zeros, zeros))
        return self.join(jnp.concatenate([ahead, jnp.take_along_axis(behind, turned, 1)], -1))


class Probe(nnx.Module):
    """Entry, head, and one linear layer.

    Args:
      entry: of codes int [B, T, K] or vectors [B, T, W] to [B, T, D].
      width: D.
      head: "linear", or "bilstm" for two layers before the last.
      outputs: classes, or symbols of CTC.
      positions: of the output for each item, where outputs are spelled; 0 for one class of the
        whole, by the mean and the deviation over time.
    """

    def __init__(
        self,
        entry: CodeEntry | Linear,
        width: int,
        head: Head,
        outputs: int,
        positions: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.entry, self.positions = entry, positions
        layers = 2 if head == "bilstm" else 0
        self.layers = nnx.List(BiLstm(width, rngs=rngs) for _ in range(layers))
        inputs = width if positions else 2 * width
        self.out = Linear(inputs, max(positions, 1) * outputs, rngs=rngs, bias=True)

    def __call__(
        self, values: jax.Array, lengths: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Values [B, T, ...] of `lengths` [B] items -> logits [B, outputs] or [B, T * positions,
        outputs]; `key` for dropout."""
        x = self.entry(values)
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        x = _drop(x, keys.pop())
        for layer in self.layers:
            x = _drop(layer(x, lengths), keys.pop())
        if not self.positions:
            return self.out(_statistics(x, lengths))
        return self.out(x).reshape(x.shape[0], x.shape[1] * self.positions, -1)


def _drop(x: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - _DROPOUT, x.shape), x / (1 - _DROPOUT), 0)


def _statistics(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """Mean and deviation over the first `lengths` of [B, T, D] -> [B, 2 D]."""
    inside, count = within(x, lengths), lengths[:, None]
    mean = jnp.sum(jnp.where(inside, x, 0), axis=1) / count
    spread = jnp.sum(jnp.where(inside, (x - mean[:, None]) ** 2, 0), axis=1) / count
    return jnp.concatenate([mean, jnp.sqrt(spread + 1e-5)], axis=-1)
