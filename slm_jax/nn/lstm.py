"""A stack of LSTM layers (Hochreiter & Schmidhuber 1997), gates in the order of torch.nn.LSTM."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.nn.layers import LECUN_NORMAL


class LstmState(NamedTuple):
    """Output and cell of a layer after the last position, [B, D] each."""

    h: jax.Array
    c: jax.Array


class LstmLayer(nnx.Module):
    """[B, T, D] -> [B, T, D]; gates are input, forget, cell, output."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.ih = nnx.Param(LECUN_NORMAL(rngs.params(), (width, 4 * width)))
        self.hh = nnx.Param(LECUN_NORMAL(rngs.params(), (width, 4 * width)))
        self.bias_ih = nnx.Param(jnp.zeros(4 * width))
        self.bias_hh = nnx.Param(jnp.zeros(4 * width))

    def __call__(self, x: jax.Array, state: LstmState) -> tuple[jax.Array, LstmState]:
        inputs = x @ self.ih[...] + self.bias_ih[...] + self.bias_hh[...]
        recurrent = self.hh[...]

        def position(state: LstmState, gates: jax.Array) -> tuple[LstmState, jax.Array]:
            i, f, g, o = jnp.split(gates + state.h @ recurrent, 4, axis=-1)
            c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return LstmState(h, c), h

        state, outputs = jax.lax.scan(position, state, jnp.swapaxes(inputs, 0, 1))
        return jnp.swapaxes(outputs, 0, 1), state


class ResidualLstm(nnx.Module):
    """A stack and a way around it, as EncodecLSTM of transformers. A `streaming.Layer`."""

    def __init__(self, width: int, layers: int, *, rngs: nnx.Rngs):
        self.width = width
        self.layers = nnx.List(LstmLayer(width, rngs=rngs) for _ in range(layers))

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.step(x, self.start(x.shape[0]))[0], lengths

    def start(self, batch: int) -> list[LstmState]:
        zeros = jnp.zeros((batch, self.width))
        return [LstmState(zeros, zeros) for _ in self.layers]

    def step(self, x: jax.Array, state: list[LstmState]) -> tuple[jax.Array, list[LstmState]]:
        y, after = x, []
        for layer, before in zip(self.layers, state, strict=True):
            y, now = layer(y, before)
            after.append(now)
        return x + y, after
