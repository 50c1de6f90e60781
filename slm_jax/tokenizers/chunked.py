"""Models that hear in both directions, as streams: overlapping windows, each a whole row to the
model, of whose output the middle is kept.

A codec of convolutions gives so what it gives for the whole row, because windows hold all that the
middle depends on (`Blocks`). A transformer that hears everything is defined by its windows instead
(`unit_encoder`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import numpy as np


class Window(NamedTuple):
    """How a row is cut.

    Attributes:
      step: input positions from one window to the next, whose output each of them gives.
      before, after: input positions that it is shown beside those, fewer at the ends of a row;
        `after` is 1 or more.
      out: output positions of `step`; those of `before` must be a whole number.
    """

    step: int
    before: int
    after: int
    out: int

    @property
    def length(self) -> int:
        """Most input positions of one window."""
        return self.before + self.step + self.after


class WindowStream:
    """Runs a function over a row as it arrives. What comes out does not depend on how the row is
    cut into chunks.

    Args:
      run: (one window's input [m, ...], m <= window.length, and its first position in the row) ->
        its output [t, ...].
      window: how the row is cut.
    """

    def __init__(self, run: Callable[[np.ndarray, int], np.ndarray], window: Window):
        self._run, self._window = run, window
        self._held: np.ndarray | None = None  # input from `_start` on
        self._start = self._at = 0  # `_at`: where the next window's step begins

    def push(self, chunk: np.ndarray) -> list[np.ndarray]:
        """The next input [n, ...], n >= 0 -> the outputs [window.out, ...] that it completes."""
        held = chunk if self._held is None else np.concatenate([self._held, chunk])
        self._held, ready = held, []
        while self._start + len(self._held) >= self._at + self._window.step + self._window.after:
            ready.append(self._next()[: self._window.out])
        return ready

    def finish(self) -> list[np.ndarray]:
        """The outputs that are left when the row has ended, the last with all that it has."""
        rest: list[np.ndarray] = []
        if self._held is None:
            return rest
        while self._start + len(self._held) > self._at + self._window.step:
            rest.append(self._next()[: self._window.out])
        return [*rest, self._next()]

    def _next(self) -> np.ndarray:
        """The output from the next window's step on; forgets what no later window is shown."""
        window, at = self._window, self._at
        piece = self._held[: at + window.step + window.after - self._start]
        found = self._run(piece, self._start)[(at - self._start) * window.out // window.step :]
        self._at += window.step
        start = max(0, self._at - window.before)
        self._held, self._start = self._held[start - self._start :], start
        return found


class Blocks(NamedTuple):
    """Parts of a row that a codec can be run on.

    Attributes:
      samples, frames: of a block; windows begin where blocks do.
      heard: samples before and after a block that its codes depend on.
      sounded: frames before and after a block that its audio depends on; whole blocks.
      tail: samples that follow the last block.
    """

    samples: int
    frames: int
    heard: tuple[int, int]
    sounded: tuple[int, int]
    tail: int = 0


class BlockCodec(Protocol):
    """A `Codec` with `blocks`."""

    blocks: Blocks

    def encode(self, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]: ...

    def decode_at(self, codes: jax.Array, frames: jax.Array, start: int) -> jax.Array:
        """`Codec.decode` of rows that are cut out of longer ones, where they begin at frame
        `start`."""
        ...


def encode_stream(codec: BlockCodec, count: int = 1) -> WindowStream:
    """Audio float32 [n] at the codec's rate -> codes int32 [t, K], `count` blocks at a time."""
    samples, frames, (before, after), _, _ = codec.blocks
    window = Window(count * samples, before, after, count * frames)

    def run(piece: np.ndarray, _: int) -> np.ndarray:
        codes, found = codec.encode(_filled(piece, window)[None], np.array([len(piece)]))
        return np.asarray(codes)[0, : int(found[0])]

    return WindowStream(run, window)


def decode_stream(codec: BlockCodec, count: int = 1) -> WindowStream:
    """Codes int [t, K'] -> audio float32 [n], `count` blocks at a time. A last frame that lacks
    some samples (DAC with odd strides) gets zeros for them."""
    samples, frames, _, (before, after), tail = codec.blocks
    window = Window(count * frames, before, after, count * samples)

    def run(piece: np.ndarray, start: int) -> np.ndarray:
        audio = codec.decode_at(_filled(piece, window)[None], np.array([len(piece)]), start)
        wanted = len(piece) * samples // frames + tail
        return np.asarray(audio)[0, :wanted]

    return WindowStream(run, window)


def reach(span: tuple[int, int], block: int) -> tuple[int, int]:
    """Whole blocks, in positions, before and after the first `block` positions that hold a span
    (first and last position)."""
    first, last = span
    return -(first // block) * block, last // block * block


def _filled(piece: np.ndarray, window: Window) -> np.ndarray:
    """Zeros behind a piece until all windows have one shape."""
    return np.pad(piece, ((0, window.length - len(piece)),) + ((0, 0),) * (piece.ndim - 1))
