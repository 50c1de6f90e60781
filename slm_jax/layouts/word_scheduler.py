"""Decoding on the clock of words: when the next word begins, and what that moves on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.layouts.grid import Row

ENDLESS = np.int32(2**30)  # ticks of a sequence whose end is not known yet


class WordState(NamedTuple):
    """Where each sequence of a batch stands.

    Attributes:
      word: int32 [B], tick of the last column; -1 after the initial column alone.
      ends: int32 [B, T], the last column of that tick, and of those before it.
      end: int32 [B], number of words (frames); ENDLESS until EOS.
      held: int32 [B, K], the last column without its text row.
      codes: int32 [B, W, K], known items of the prompt.
      known: int32 [B], how many of them.
      done: bool [B], whether the last column completes the sequence.
    """

    word: jax.Array
    ends: jax.Array
    end: jax.Array
    held: jax.Array
    codes: jax.Array
    known: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class WordScheduler:
    """Turns what a sampler proposes for the next column into the column of the training grid.

    Pure, over a batch, and free of Python control flow on values: use it inside jit and scan.
    A text id that starts a word moves every level on: level k takes word w - delay_k, from the
    prompt if it is known, else from the sampler. Other text ids hold the levels. After EOS the text
    row is forced, a column a word, until the most delayed level has been written.

    Attributes:
      starts_word: bool [V].
      eos: text id that ends and then fills the text row.
      delays, reaches, inits, pads: of each level's `Row`, int32 [K].
      tail: ticks from the end of the words (frames) to the end of the sequence.
    """

    starts_word: jax.Array
    eos: int
    delays: np.ndarray
    reaches: np.ndarray
    inits: np.ndarray
    pads: np.ndarray
    tail: int

    @classmethod
    def of(cls, rows: Sequence[Row], tail: int, starts_word: np.ndarray) -> WordScheduler:
        """The scheduler of a layout with these rows, text first."""
        levels = rows[1:]
        if len(starts_word) != rows[0].vocab:
            raise ValueError(
                f"starts_word has {len(starts_word)} ids, the text row {rows[0].vocab}"
            )
        return cls(
            starts_word=jnp.asarray(starts_word, bool),
            eos=rows[0].pad,
            delays=np.array([row.delay for row in levels], np.int32),
            reaches=np.array([row.reach for row in levels], np.int32),
            inits=np.array([row.init for row in levels], np.int32),
            pads=np.array([row.pad for row in levels], np.int32),
            tail=tail,
        )

    def init(
        self,
        prompt_codes: jax.Array,
        prompt_words: jax.Array,
        prompt_ends: jax.Array,
    ) -> WordState:
        """The state after a prompt: after the last id of its last word, or after BOS alone.

        Args:
          prompt_codes: int32 [B, W, K], W at least 1; items from `prompt_words` on do not matter.
          prompt_words: int32 [B], 0 for none.
          prompt_ends: int32 [B, T], `Layout.ends` of each prompt.
        """
        batch = prompt_codes.shape[0]
        word = jnp.asarray(prompt_words, jnp.int32) - 1
        end = jnp.full(batch, ENDLESS)
        codes, known = jnp.asarray(prompt_codes, jnp.int32), word + 1
        ends, held = jnp.asarray(prompt_ends, jnp.int32), jnp.tile(self.inits, (batch, 1))
        state = WordState(word, ends, end, held, codes, known, word < -1)
        return state._replace(held=self._levels(state, word, end, state.held)[0])

    def next(
        self, state: WordState, candidates: jax.Array
    ) -> tuple[WordState, jax.Array, jax.Array]:
        """Decides the next column.

        Args:
          state: of the columns so far.
          candidates: int32 [B, R], what the sampler picked for each row of the next column.

        Returns:
          The state after the column; the column, int32 [B, R], to be written down and fed to the
          model; and bool [B, R], the cells that were taken from `candidates`. A sequence that is
          done goes on with EOS and PAD.
        """
        candidates = jnp.asarray(candidates, jnp.int32)
        ended = state.word >= state.end
        text = jnp.where(ended, self.eos, candidates[:, 0])
        starts = ended | self.starts_word[text] | (text == self.eos) | (state.word < 0)
        word = state.word + starts
        end = jnp.where(text == self.eos, jnp.minimum(state.end, word), state.end)
        levels, fresh = self._levels(state, word, end, candidates[:, 1:])
        held = jnp.where(starts[:, None], levels, state.held)
        column = jnp.concatenate([text[:, None], held], 1)
        sampled = jnp.concatenate([~ended[:, None], fresh & starts[:, None]], 1)
        done = word >= end + self.tail - 1
        earlier = jnp.where(starts[:, None], state.ends[:, :-1], state.ends[:, 1:])
        ends = jnp.concatenate([state.ends[:, :1] + 1, earlier], axis=1)
        return WordState(word, ends, end, held, state.codes, state.known, done), column, sampled

    def origins(self, state: WordState) -> jax.Array:
        """`Layout.origins` of the column to come, if it begins a tick: int32 [B, R]."""
        levels = state.ends[:, np.maximum(self.delays - 1, 0)]
        return jnp.concatenate([state.ends[:, :1], levels], axis=1)

    def _levels(
        self, state: WordState, word: jax.Array, end: jax.Array, candidates: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The first column of tick `word` without text, and which cells are candidates."""
        item = word[:, None] - self.delays
        known = item < state.known[:, None]
        index = item.clip(0, state.codes.shape[1] - 1)
        given = jnp.take_along_axis(state.codes, index[:, None], axis=1)[:, 0]
        last = end[:, None]
        past = word[:, None] >= last + self.reaches
        inside = (item >= 0) & (item < last) & ~past
        outside = jnp.where((item < 0) & ~past, self.inits, self.pads)
        return jnp.where(inside, jnp.where(known, given, candidates), outside), inside & ~known


def word_starts(
    pieces: Iterable[str], eos: int, markers: tuple[str, ...] = ("Ġ", "▁", " ")
) -> np.ndarray:
    """Whether each text id begins a word, for `Layout.scheduler`.

    Args:
      pieces: the tokenizer's piece of each id, in order.
      eos: counts as a word of its own.
      markers: how a piece shows a space before it (byte-level BPE, SentencePiece, plain).

    Returns:
      bool [V].
    """
    table = np.array([piece.startswith(markers) for piece in pieces], bool)
    table[eos] = True
    return table
