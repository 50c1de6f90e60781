"""What a decode scheduler runs: every row of an expression compiled to a small automaton.

A state says what may stand in the next cell of its row: one forced id, or one of several options,
each a range of ids that belongs to a level of a stream and leads to another state. An expression is
compiled from its end: an operator is told the state that comes after it, and returns the state that
it begins with, as regular expressions are compiled by continuations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

# In place of a forced id: sample; the row's last id again; the id of the row's leader.
SAMPLED, HELD, COPIED = -10, -11, -12

_ENDLESS = 2**30
_STATES, _OPTIONS, _WAITS = 32, 4, 4  # sizes that tables are padded to, so that few differ


class Option(NamedTuple):
    """Ids [low, high): an item of a level of a stream, or a special id (stream -1); `then` is the
    state after it, and `ends` the stream that is over with it (-1 for none)."""

    low: int
    high: int
    stream: int
    level: int
    then: int
    ends: int = -1


@dataclasses.dataclass
class State:
    """Attributes:
    fill: the forced id, HELD or COPIED; SAMPLED where an option is chosen.
    then: after a forced id.
    options: what may be sampled.
    exit: the state instead of this one as soon as `over` holds for `waits`, or, without them, once
      `stream` has as many items of `level` as its length less `drop`. Its options may be sampled
      here too, and then end `stream`.
    clock: count cells instead of items for that.
    follows: stream whose level `level` stands here if its level 0 does in this column; else `fill`.
    waits: parts that must be over.
    unread: what is sampled says what comes next, but the cell stays empty.
    """

    fill: int = SAMPLED
    then: int = -1
    options: list[Option] = dataclasses.field(default_factory=list)
    exit: int = -1
    stream: int = -1
    level: int = 0
    drop: int = 0
    clock: bool = False
    follows: int = -1
    waits: tuple[Hashable, ...] = ()
    unread: bool = False


class Frame(NamedTuple):
    """The end of a stream that is one id in all of its levels, where each alone may be an item.

    Attributes:
      stream: its number.
      id: in every row.
      machines: of its levels, in order.
      then: the state of each after the end.
    """

    stream: int
    id: int
    machines: tuple[int, ...]
    then: tuple[int, ...]


class Builder:
    """Collects the states of all rows.

    Attributes:
      states: all of them.
      rows: how many rows share the automaton that is being built.
    """

    def __init__(self, streams: Sequence[object]):
        self.states: list[State] = []
        self.rows = 1
        self._streams = tuple(streams)
        self._machine, self._room = 0, _ENDLESS
        self._parts: dict[Hashable, tuple[int, int]] = {}
        self._frames: dict[tuple[int, int], dict[int, int]] = {}

    def number(self, stream: object) -> int:
        return self._streams.index(stream)

    def add(self, state: State) -> int:
        self.states.append(state)
        return len(self.states) - 1

    def forced(self, id: int, then: int, count: int = 1) -> int:
        """`count` cells of a forced id."""
        for _ in range(count):
            then = self.add(State(fill=id, then=then))
        return then

    def chosen(self, id: int, then: int) -> int:
        """One cell of an id that the model predicts: where nothing else may stand, it is forced."""
        return self.add(State(options=[Option(id, id + 1, -1, 0, then)]))

    def together(self, stream: object, id: int, then: int) -> int:
        """The end of a stream's level, which is over once all levels say `id` in one column."""
        levels = self._frames.setdefault((self.number(stream), id), {})
        levels[self._machine] = then
        return self.forced(id, then)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """What `together` was told."""
        return tuple(
            Frame(*end, tuple(levels), tuple(levels.values()))
            for end, levels in self._frames.items()
        )

    def wait(self, fill: int, parts: Sequence[Hashable], after: int) -> int:
        """Cells of `fill` until all parts are over."""
        index = self.add(State(fill=fill, exit=after, waits=tuple(parts)))
        self.states[index].then = index
        return index

    def begin(self, machine: int, rows: int, pad: int) -> int:
        """Begins an automaton; returns its last state, which pads for ever."""
        self._machine, self.rows = machine, rows
        end = self.add(State(fill=pad))
        self.states[end].then = end
        return end

    @contextmanager
    def part(self, key: Hashable) -> Iterator[None]:
        """What is built inside can be waited for by its key."""
        self._parts[key] = (self._machine, len(self.states))
        yield

    @property
    def drop(self) -> int:
        """Items that the delays around a row leave out at its end."""
        return max(0, -self._room)

    @contextmanager
    def delaying(self, by: int, tail: int) -> Iterator[int]:
        """What is built inside comes later.

        Args:
          by: columns.
          tail: columns that the rows here may have more than items.

        Yields:
          The least of such tails, from here on.
        """
        outer, room = self._room, min(self._room, tail)
        self._room = room - by
        yield room
        self._room = outer

    def tables(self) -> Tables:
        """The states as arrays, options inherited from exits among them."""
        padding = -len(self.states) % _STATES
        self.states += [State()] * padding
        known = {i: self._options(i) for i in range(len(self.states))}
        most = max(_OPTIONS, *map(len, known.values()))
        options = np.full((len(self.states), most, 6), -1, np.int32)
        for index, own in known.items():
            options[index, : len(own)] = np.reshape(own, (-1, 6))
        waits = max(_WAITS, *(len(state.waits) for state in self.states))
        machines = np.zeros((len(self.states), waits), np.int32)
        limits = np.full((len(self.states), waits), len(self.states), np.int32)
        for index, state in enumerate(self.states):
            for place, key in enumerate(state.waits):
                machines[index, place], limits[index, place] = self._parts[key]
        fills = [
            own[0].low if state.fill == SAMPLED and _single(own) else state.fill
            for state, own in zip(self.states, known.values(), strict=True)
        ]
        fields = {
            name: np.array([getattr(state, name) for state in self.states])
            for name in ("then", "exit", "stream", "level", "drop", "clock", "follows", "unread")
        }
        waiting = np.array([bool(state.waits) for state in self.states])
        return Tables(
            fill=np.array(fills, np.int32),
            options=options,
            waiting=waiting,
            machines=machines,
            limits=limits,
            **{k: v if v.dtype == bool else v.astype(np.int32) for k, v in fields.items()},
        )

    def _options(self, index: int) -> list[Option]:
        """Of the state, and of those that it may be left for, which end its stream."""
        state = self.states[index]
        found, over = list(state.options), state.stream
        while state.fill == SAMPLED and state.exit >= 0 and not state.unread:
            state = self.states[state.exit]
            if state.fill == SAMPLED:
                found += [option._replace(ends=over) for option in state.options]
        return found


def _single(options: Sequence[Option]) -> bool:
    return len(options) == 1 and options[0].high == options[0].low + 1 and options[0].stream < 0


class Tables(NamedTuple):
    """`State`s as arrays over N states: int32 [N], `options` [N, M, 6] with -1 where there is none,
    `machines` and `limits` [N, W]: a part is over when the state of its machine is below its limit.
    """

    fill: np.ndarray
    then: np.ndarray
    options: np.ndarray
    exit: np.ndarray
    stream: np.ndarray
    level: np.ndarray
    drop: np.ndarray
    clock: np.ndarray
    follows: np.ndarray
    unread: np.ndarray
    waiting: np.ndarray
    machines: np.ndarray
    limits: np.ndarray
