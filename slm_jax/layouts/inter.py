"""Streams in turns."""

from __future__ import annotations

import dataclasses

import numpy as np

from slm_jax.layouts.cells import View
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.program import Builder, State
from slm_jax.layouts.sequences import InTurn, plain, same_rows


@dataclasses.dataclass(frozen=True)
class Inter(InTurn):
    """Streams in turns, so many items of each; who has more goes on alone (GLM-4-Voice 13:26).

    What is only read ends where the model would say that it has no more to say: read items beside
    which nothing is left to predict are dropped (LLaMA-Omni 2's text where its units are few).

    Attributes:
      parts: streams without EOS, of ids that no other of them has; put a `Token` after all. A
        predicted part that is over before another one is told by the other's ids, so one that is
        predicted must come next among those that are left.
      turns: items of each part in a turn.
    """

    parts: tuple[AnyStream, ...]
    turns: tuple[int, ...]

    def __post_init__(self) -> None:
        same_rows(self.parts)
        plain(self.parts, "parts")
        if len(self.turns) != len(self.parts) or min(self.turns) < 1:
            raise ValueError("turns must give each part at least one item")

    def place(self, view: View) -> np.ndarray:
        placed = [part.place(view) for part in self.parts]
        ends = [cells.shape[1] // n for cells, n in zip(placed, self.turns, strict=True)]
        said = [(end, n) for n, end in enumerate(ends) if self.parts[n].predicted]
        if said:
            last, place = max(said)  # the turn in which nothing is left to predict
            for n, part in enumerate(self.parts):
                if not part.predicted:
                    placed[n] = placed[n][:, : (last + (n < place)) * self.turns[n]]
        rounds = [np.arange(p.shape[1]) // n for p, n in zip(placed, self.turns, strict=True)]
        order = np.argsort(np.concatenate(rounds), kind="stable")
        return np.concatenate(placed, axis=1)[:, order]

    def columns(self, view: View) -> int:
        return self.place(view).shape[1]

    def program(self, row: int, build: Builder, after: int) -> int:
        return self._turns(frozenset(range(len(self.parts))), row, build, after)[0]

    def _turns(self, left: frozenset[int], row: int, build: Builder, after: int) -> dict[int, int]:
        """The states with which each part that is left begins its turn."""
        order = sorted(left)
        if any(part.predicted for part in self.parts) and not any(
            self.parts[part].predicted for part in left
        ):
            return dict.fromkeys(left, after)
        if len(left) == 1:
            return {order[0]: self.parts[order[0]].program(row, build, after)}
        # A part that is over hands the rest of its turn to the next one.
        over = {
            part: self._turns(left - {part}, row, build, after)[order[(n + 1) % len(order)]]
            for n, part in enumerate(order)
        }
        slots = {
            part: [
                build.add(State(exit=over[part], stream=build.number(self.parts[part]), level=row))
                for _ in range(self.turns[part])
            ]
            for part in order
        }
        for n, part in enumerate(order):
            following = slots[order[(n + 1) % len(order)]][0]
            for slot, then in zip(slots[part], [*slots[part][1:], following], strict=True):
                build.states[slot].options = [self.parts[part].option(row, build, then)]
        return {part: slots[part][0] for part in order}
