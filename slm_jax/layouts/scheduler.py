"""Decoding by a layout: which cells of the next column are sampled, which forced, and the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.layouts.automata import ENDLESS, Automata, Column, State
from slm_jax.layouts.expression import Operator
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.program import Builder


@dataclasses.dataclass(frozen=True, eq=False)
class Scheduler:
    """Turns what a sampler proposes for the next column into a column of the training grid.

    Attributes:
      streams: of the layout.
      begin: int [M], first state of each automaton.
      automata: what decides each column.
    """

    streams: tuple[AnyStream, ...]
    begin: np.ndarray
    automata: Automata

    @classmethod
    def of(cls, expression: Operator) -> Scheduler:
        """Compiles an expression without a `Text` row."""
        build, machines = Builder(expression.streams), expression.machines
        begin, end = [], []
        for machine in dict.fromkeys(machines):
            row = machines.index(machine)
            last = build.begin(machine, machines.count(machine), expression.rows[row].pad)
            end.append(last)
            begin.append(expression.program(row, build, last))
        tables, frames = build.tables(), build.frames
        automata = Automata(tables, np.array(end, np.int32), machines, frames)
        return cls(expression.streams, np.array(begin, np.int32), automata)

    def init(
        self,
        batch: int,
        given: Mapping[str, Sequence[np.ndarray]] | None = None,
        lengths: Mapping[str, Sequence[int]] | None = None,
        inits: Sequence[int] = (),
    ) -> State:
        """The state before the first column that is decided.

        Args:
          batch: B.
          given: family -> for each sequence int [T, levels], items that are known: all of a stream
            that is only read (none of an optional one where it is left out), the first of another.
          lengths: family -> items in all, where that is known: given streams that are only read
            have as many as were given.
          inits: ids of the column before, for layouts with an initial one.
        """
        given, lengths = given or {}, lengths or {}
        numbers, levels = len(self.streams), max(len(stream.vocab) for stream in self.streams)
        most = max([1, *(len(items) for rows in given.values() for items in rows)])
        items = np.zeros((batch, numbers, most, levels), np.int32)
        known = np.zeros((batch, numbers), np.int32)
        total = np.full((batch, numbers), ENDLESS)
        for number, stream in enumerate(self.streams):
            if stream.optional:
                total[:, number] = 0
            for row, values in enumerate(given.get(stream.family, ())):
                own = stream.taken(np.asarray(values))
                if own.shape[1] < len(stream.vocab):
                    continue  # the finer levels of the family are to be decoded
                items[row, number, : len(own), : own.shape[1]] = own
                known[row, number] = len(own)
                if not stream.predicted:
                    total[row, number] = len(own)
            if stream.family in lengths:
                total[:, number] = lengths[stream.family]
        held = np.zeros((batch, len(self.automata.machines)), np.int32)
        held[:] = inits if len(inits) else 0
        state = State(
            at=jnp.tile(jnp.asarray(self.begin, jnp.int32), (batch, 1)),
            counts=jnp.zeros((batch, numbers, levels + 1), jnp.int32),
            lengths=jnp.asarray(total),
            given=jnp.asarray(items),
            known=jnp.asarray(known),
            held=jnp.asarray(held),
            done=jnp.zeros(batch, bool),
        )
        return self.automata.settle(state)

    def next(self, state: State, candidates: jax.Array) -> tuple[State, Column]:
        """`Automata.next`."""
        return self.automata.next(state, candidates)
