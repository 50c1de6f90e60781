"""One forward pass for two ways of running it: whole rows at once, or chunk after chunk.

A network takes a `run` and calls `run(layer, x)` for every layer that looks beyond one position.
`Rows` and `Stream` are the two kinds of `run`; a layer offers a method for each (see `Layer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax


class Layer(Protocol):
    """A layer over time, x [B, T, D]."""

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whole rows, of which the first `lengths` [B] positions count -> the same of the output.
        What counts of a row must not depend on T or on other rows."""
        ...

    def start(self, batch: int) -> Any:
        """State before the first chunk: a pytree of zeros."""
        ...

    def step(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """The next chunk of all rows -> its output, and the state before the next one."""
        ...


class Run(Protocol):
    """What a network's forward pass calls for each layer."""

    def __call__(self, layer: Any, x: jax.Array) -> jax.Array: ...


class Rows:
    """Runs layers over whole rows.

    Attributes:
      lengths: int [B], positions of each row that count, after the last layer run.
    """

    def __init__(self, lengths: jax.Array):
        self.lengths = lengths

    def __call__(self, layer: Any, x: jax.Array) -> jax.Array:
        y, self.lengths = layer(x, self.lengths)
        return y


class Stream:
    """Runs layers over the next chunk.

    Args:
      before: what `after` was of the last chunk, None at the first. Layers must be called in the
        same order every time.

    Attributes:
      after: states of the layers run so far.
    """

    def __init__(self, before: Sequence[Any] | None):
        self._before = None if before is None else iter(before)
        self.after: list[Any] = []

    def __call__(self, layer: Any, x: jax.Array) -> jax.Array:
        state = layer.start(x.shape[0]) if self._before is None else next(self._before)
        y, state = layer.step(x, state)
        self.after.append(state)
        return y
