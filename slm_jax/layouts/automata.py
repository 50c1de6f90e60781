"""The rows of a layout as automata, which decide one column after the other."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.layouts.expression import ZERO
from slm_jax.layouts.program import COPIED, HELD, SAMPLED, Frame, Tables

ENDLESS = np.int32(2**30)  # items of a stream whose end is not known yet
_HOPS = 4  # states that a row may pass in one column without writing


class State(NamedTuple):
    """Where each sequence of a batch stands; N streams of at most K levels, M automata.

    Attributes:
      at: int32 [B, M], state of each automaton.
      counts: int32 [B, N, K + 1], items so far of each level; the last one counts cells on a
        stream's clock.
      lengths: int32 [B, N], items in all; ENDLESS until the end is known.
      given: int32 [B, N, T, K], items that are known.
      known: int32 [B, N], how many of them.
      held: int32 [B, R], the last column.
      done: bool [B], whether that one completes the sequence.
    """

    at: jax.Array
    counts: jax.Array
    lengths: jax.Array
    given: jax.Array
    known: jax.Array
    held: jax.Array
    done: jax.Array


class Column(NamedTuple):
    """One more column, each int32 [B, R] but `sampled`.

    Attributes:
      ids: to be written down and fed to the model.
      sampled: bool, taken from the candidates.
      stream, level, item: what stands there, in the numbers of `Layout.streams`; -1 for a special.
    """

    ids: jax.Array
    sampled: jax.Array
    stream: jax.Array
    level: jax.Array
    item: jax.Array


class Opened(NamedTuple):
    """A column that is being written.

    Attributes:
      state: after the rows so far.
      before: `State.counts` before the column.
      said: int32 [B, M], last id of each automaton in this column.
    """

    state: State
    before: jax.Array
    said: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables", "end"],
    meta_fields=["machines", "frames"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Automata:
    """The rows of a layout as automata.

    Pure, over a batch, and free of Python control flow on values: use it inside jit and scan. A
    pytree, so that layouts of the same size share a program.

    Attributes:
      tables: of all rows' automata.
      end: int [M], the last state of each.
      machines: the automaton of each row.
      frames: ends that a whole column says.
    """

    tables: Tables
    end: np.ndarray
    machines: tuple[int, ...]
    frames: tuple[Frame, ...] = ()

    def next(self, state: State, candidates: jax.Array) -> tuple[State, Column]:
        """Decides the next column.

        Args:
          state: of the columns so far.
          candidates: int [B, R], what the sampler picked. An id that may not stand in its cell
            becomes the nearest of the ids expected there.

        Returns:
          The state after the column, and the column. A sequence that is done goes on with PAD.
        """
        candidates = jnp.asarray(candidates, jnp.int32)
        return jax.vmap(self._column)(state, candidates)

    def open(self, state: State) -> Opened:
        """Begins the next column, for `write` of each row in order and `close`: `next` in parts,
        for a sampler that must know the rows above."""
        return Opened(state, state.counts, jnp.zeros_like(state.at))

    def write(self, opened: Opened, row: int, candidate: jax.Array) -> tuple[Opened, Column]:
        """Decides one cell.

        Args:
          opened: with all rows above it written.
          row: of the layout.
          candidate: int [B].

        Returns:
          The column so far, and the cell, each [B].
        """
        return jax.vmap(lambda opened, candidate: self._write(opened, row, candidate))(
            opened, jnp.asarray(candidate, jnp.int32)
        )

    def close(self, opened: Opened, column: Column) -> tuple[State, Column]:
        """The state after a column, and the column, in which items may turn out to be an end."""
        return jax.vmap(self._close)(opened, column)

    def settle(self, state: State) -> State:
        """Leaves all states that are over, as before the first column."""
        return jax.vmap(self._settle)(state)

    def allowed(self, state: State, row: int, size: int) -> jax.Array:
        """Which of the ids [0, size) may stand in the next cell of a row: bool [B, size]."""
        options = self._of(state.at[:, self.machines[row]]).options
        ids = jnp.arange(size)[None, None]
        return ((options[..., :1] <= ids) & (ids < options[..., 1:2])).any(1)

    # Below, one sequence: no batch axis.

    def _of(self, at: jax.Array) -> Tables:
        """The tables' entries of states."""
        return jax.tree.map(lambda table: jnp.asarray(table)[at], self.tables)

    def _column(self, state: State, candidates: jax.Array) -> tuple[State, Column]:
        def write(opened: Opened, inputs: tuple) -> tuple[Opened, Column]:
            return self._write(opened, *inputs)

        rows = jnp.arange(len(self.machines)), candidates
        opened = Opened(state, state.counts, jnp.zeros_like(state.at))
        return self._close(*jax.lax.scan(write, opened, rows))

    def _close(self, opened: Opened, column: Column) -> tuple[State, Column]:
        state = opened.state._replace(held=column.ids)
        for frame in self.frames:
            rows = np.array([self.machines.index(machine) for machine in frame.machines])
            machines, then = np.array(frame.machines), np.array(frame.then)
            items = column.sampled[rows] & (column.stream[rows] == frame.stream)
            over = (items & (column.ids[rows] == frame.id)).all()
            at = jnp.where(over, then, state.at[machines])
            counts = state.counts.at[frame.stream, : len(rows)].add(-over.astype(jnp.int32))
            length = jnp.where(over, counts[frame.stream, 0], state.lengths[frame.stream])
            state = state._replace(
                at=state.at.at[machines].set(at),
                counts=counts,
                lengths=state.lengths.at[frame.stream].set(length),
            )
            ended = jnp.zeros(len(self.machines), bool).at[rows].set(over)
            column = column._replace(
                stream=jnp.where(ended, -1, column.stream),
                level=jnp.where(ended, 0, column.level),
                item=jnp.where(ended, -1, column.item),
            )
        return self._settle(state), column

    def _write(self, opened: Opened, row: Any, candidate: jax.Array) -> tuple[Opened, Column]:
        state, before, said = opened
        machine = jnp.array(self.machines)[row]
        at = state.at[machine]
        for _ in range(_HOPS):  # a stream may have ended within the column
            at = jnp.where(self._ended(state, at), self._of(at).exit, at)
        held = state.held[row]
        then, counts, lengths, cell = self._cell(state, at, candidate, held, before, said)
        state = state._replace(at=state.at.at[machine].set(then), counts=counts, lengths=lengths)
        return Opened(state, before, said.at[machine].set(cell.ids)), cell

    def _cell(
        self,
        state: State,
        at: jax.Array,
        candidate: jax.Array,
        held: jax.Array,
        before: jax.Array,
        said: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array, Column]:
        """(state after it, counts, lengths, cell) of a row in state `at`.

        Args:
          state: of the sequence.
          at: the row's.
          candidate: id that the sampler picked.
          held: id of the row in the last column.
          before: counts before this column.
          said: ids of this column so far, of each automaton.
        """
        here = self._of(at)
        low, high, streams, levels, then, ends = here.options.T
        leads = state.counts[here.follows, 0] > before[here.follows, 0]
        led = (here.follows >= 0) & leads  # level 0 of what it follows stands in this column
        forced = (here.fill != SAMPLED) & ~led
        fill = jnp.where(here.fill == HELD, held, here.fill)
        fill = jnp.where(here.fill == COPIED, said[here.machines[0]], fill)
        count = state.counts[streams[0], levels[0]]
        is_given = ~forced & (streams[0] >= 0) & (count < state.known[streams[0]])
        place = jnp.minimum(count, state.given.shape[1] - 1)
        item = low[0] + state.given[streams[0], place, levels[0]]
        id = jnp.where(is_given, item, candidate)
        fits = (low <= id) & (id < high)
        # A special id may lie among those of a text, and is then no item of it.
        which = jnp.where(is_given, 0, (fits * (1 + (streams < 0))).argmax())
        id = jnp.where(fits.any(), id, id.clip(low[which], high[which] - 1))
        # A single option that is forced still says what comes after it.
        then = jnp.where(forced & (here.then >= 0), here.then, then[which])
        stream, level, over = streams[which], levels[which], ends[which]
        special = forced | (stream < 0)
        counts = state.counts.at[stream, level].add(~special)
        counts = counts.at[here.stream, -1].add(here.clock)
        length = jnp.minimum(state.lengths[over], counts[over, 0])
        length = jnp.where(~forced & (over >= 0), length, state.lengths[over])
        cell = Column(
            ids=jnp.where(forced, fill, jnp.where(here.unread, ZERO, id)),
            sampled=~forced & ~is_given,
            stream=jnp.where(special, -1, stream),
            level=jnp.where(special, 0, level),
            item=jnp.where(special, -1, state.counts[stream, level]),
        )
        return then, counts, state.lengths.at[over].set(length), cell

    def _settle(self, state: State) -> State:
        at = state.at
        for _ in range(_HOPS):
            here = self._of(at)
            over = here.waiting & (at[here.machines] < here.limits).all(-1)
            at = jnp.where(over | self._ended(state, at), here.exit, at)
        return state._replace(at=at, done=(at == jnp.asarray(self.end)).all())

    def _ended(self, state: State, at: jax.Array) -> jax.Array:
        """Whether the stream of each state has all its items: int [...] -> bool [...]."""
        here = self._of(at)
        count = state.counts[here.stream, jnp.where(here.clock, -1, here.level)]
        full = count >= state.lengths[here.stream] - here.drop
        return (here.stream >= 0) & full & (here.exit >= 0)
