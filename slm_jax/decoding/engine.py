"""Autoregressive decoding of a speech LM: one jitted program, prefill and loop, static KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slm_jax.decoding.samplers import Sampling, sample
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.layouts import Grid, Layout, WordState
from slm_jax.models.speech_lm import Outputs, SpeechLM
from slm_jax.nn.tree import Params, merge, pure_params

_BUCKET = 32  # lengths are rounded up to multiples of this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class DecodeLimits:
    """How much is said.

    Attributes:
      min_words: no EOS before the model has begun this many words of its own.
      max_words: EOS where the model would begin one more than this many.
      ids_per_word: room for each word, in text ids; a text that needs more on average ends early.
    """

    min_words: int = 3
    max_words: int = 40
    ids_per_word: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"min_words must lie in [1, max_words], not {self.min_words}")
        if self.ids_per_word < 1:
            raise ValueError(f"ids_per_word must be at least 1, not {self.ids_per_word}")


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One sequence to continue.

    Attributes:
      prompt: `Layout.arrange_prompt`: from BOS to the last id of the last word heard.
      codes: int [W, K], the codes of these words (in `prompt` the last ones have yet to come).
      text: ids to be written next, before the model writes its own; it chooses their codes.
      text_words: number of words that `text` begins.
    """

    prompt: Grid
    codes: np.ndarray
    text: Sequence[int] = ()
    text_words: int = 0


class _Batch(NamedTuple):
    tokens: np.ndarray  # int32 [B, R, P], right-padded
    lengths: np.ndarray  # int32 [B]
    codes: np.ndarray  # int32 [B, W, K], right-padded
    words: np.ndarray  # int32 [B]
    ends: np.ndarray  # int32 [B, T], `Layout.ends` of the prompts
    text: np.ndarray  # int32 [B, N], right-padded
    text_lengths: np.ndarray  # int32 [B]
    text_words: np.ndarray  # int32 [B]


class _Loop(NamedTuple):
    step: jax.Array
    outputs: Outputs  # for the next column, [B, 1, ...]
    cache: Any
    state: WordState
    seen: jax.Array  # bool [B, V], text ids so far
    columns: jax.Array  # int32 [C, B, R], what was written
    clock: jax.Array  # int32 [C, B]
    written: jax.Array  # int32 [B], columns until the sequence ended


class Engine:
    """Continues prompts under a layout with a text row.

    Args:
      model: the speech LM.
      layout: the one it was trained with.
      vocabulary: of the layout's text row.
      text: sampler of the text row.
      speech: sampler of every codebook level.
      limits: how much is said.
    """

    def __init__(
        self,
        model: SpeechLM,
        layout: Layout,
        vocabulary: Vocabulary,
        *,
        text: Sampling,
        speech: Sampling,
        limits: DecodeLimits,
    ):
        self.layout = layout
        self._samplings = text, speech
        self._limits = limits
        self._vocabulary = vocabulary
        self._scheduler = layout.scheduler(vocabulary.starts)
        self._graphdef, self._params = pure_params(model)
        self._run = jax.jit(self._decode, static_argnames="room")

    def use(self, params: Params) -> None:
        """Goes on with other parameters of the same model, without compiling again."""
        self._params = params

    def generate(self, requests: Sequence[Request], seed: int = 0) -> list[Grid]:
        """Decodes a batch until every sequence has ended.

        Returns:
          For each request the grid of its prompt and of the columns written after it, EOS and the
          flush of the delayed levels included; `layout.restore` reads it.
        """
        batch = _collate(requests, self.layout)
        most = self._limits.max_words * self._limits.ids_per_word
        room = _round_up(batch.text.shape[1] + most + self.layout.tail + 1)
        columns, clock, written = jax.device_get(
            self._run(self._params, batch, jax.random.key(seed), room=room)
        )
        return [
            self.layout.collect(
                np.concatenate([request.prompt.content, columns[:n, row].T], axis=1),
                np.concatenate([request.prompt.clock, clock[:n, row]]),
            )
            for row, (request, n) in enumerate(zip(requests, written, strict=True))
        ]

    def _decode(
        self, params: Params, batch: _Batch, key: jax.Array, room: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model: SpeechLM = merge(self._graphdef, params)
        rows, (size, levels, width) = jnp.arange(len(batch.lengths)), batch.tokens.shape
        positions = jnp.broadcast_to(jnp.arange(width), (size, width))
        cache = model.init_cache(size, width + room)
        state = self._scheduler.init(batch.codes, batch.words, batch.ends)
        origins, last = self._scheduler.origins(state)[..., None], batch.lengths - 1
        outputs, cache = model.step(batch.tokens, positions, origins, cache, last)
        inside = positions < batch.lengths[:, None]
        seen = jnp.zeros((size, len(self._vocabulary.starts)), bool)
        seen = seen.at[rows[:, None], batch.tokens[:, 0]].max(inside)

        def unfinished(loop: _Loop) -> jax.Array:
            return (loop.step < room) & ~loop.state.done.all()

        def write(loop: _Loop) -> _Loop:
            candidates = self._candidates(loop, batch, jax.random.fold_in(key, loop.step), room)
            state, column, _ = self._scheduler.next(loop.state, candidates)
            positions = (batch.lengths + loop.step)[:, None]
            origins = self._scheduler.origins(state)[..., None]
            outputs, cache = model.step(column[..., None], positions, origins, loop.cache)
            return _Loop(
                step=loop.step + 1,
                outputs=outputs,
                cache=cache,
                state=state,
                seen=loop.seen.at[rows, column[:, 0]].set(True),
                columns=loop.columns.at[loop.step].set(column),
                clock=loop.clock.at[loop.step].set(state.word),
                written=loop.written + ~loop.state.done,
            )

        start = _Loop(
            step=jnp.int32(0),
            outputs=outputs,
            cache=cache,
            state=state,
            seen=seen,
            columns=jnp.zeros((room, size, levels), jnp.int32),
            clock=jnp.zeros((room, size), jnp.int32),
            written=jnp.zeros(size, jnp.int32),
        )
        end = jax.lax.while_loop(unfinished, write, start)
        return end.columns, end.clock, end.written

    def _candidates(self, loop: _Loop, batch: _Batch, key: jax.Array, room: int) -> jax.Array:
        """What the samplers propose for the next column: int32 [B, R]."""
        text, speech = self._samplings
        own = loop.state.word + 1 - batch.words - batch.text_words  # the model's words so far
        allowed = self._allowed(loop, batch, own[:, None], room)
        logits = jnp.where(allowed, loop.outputs.text_logits[:, 0], -jnp.inf)
        keys = jax.random.split(key, len(self.layout.rows))
        ids = sample(keys[0], logits, text, loop.seen)
        # Were the beginnings of words forbidden instead, the last word would never end.
        over = (own >= self._limits.max_words) & jnp.asarray(self._vocabulary.starts)[ids]
        ids = jnp.where(over, self._vocabulary.eos, ids)
        if batch.text.shape[1]:
            place = jnp.minimum(loop.step, batch.text.shape[1] - 1)
            ids = jnp.where(loop.step < batch.text_lengths, batch.text[:, place], ids)
        codes = [
            sample(key, logits[:, 0], speech)
            for key, logits in zip(keys[1:], loop.outputs.speech_logits, strict=True)
        ]
        return jnp.stack([ids, *codes], axis=1)

    def _allowed(self, loop: _Loop, batch: _Batch, own: jax.Array, room: int) -> jax.Array:
        """Text ids that may come next: bool [B, V]."""
        table = self._vocabulary
        is_eos = jnp.arange(len(table.starts)) == table.eos
        given = (batch.words + batch.text_words)[:, None]
        # A word that was given is whole: the first id of one's own begins a new one.
        more = table.spoken & ~is_eos & ((own > 0) | table.starts | (given == 0))
        full = loop.step >= room - self.layout.tail
        return jnp.where(full, is_eos, more | (is_eos & (own >= self._limits.min_words)))


def _collate(requests: Sequence[Request], layout: Layout) -> _Batch:
    tokens = [request.prompt.content for request in requests]
    codes = [np.reshape(request.codes, (-1, len(layout.rows) - 1)) for request in requests]
    text = [np.array(request.text, np.int32) for request in requests]
    return _Batch(
        tokens=_stack(tokens, _round_up(max(t.shape[1] for t in tokens)), axis=1),
        lengths=np.array([t.shape[1] for t in tokens], np.int32),
        codes=_stack(codes, _round_up(max(map(len, codes)) + 1), axis=0),
        words=np.array([len(c) for c in codes], np.int32),
        ends=np.stack([layout.ends(request.prompt.clock) for request in requests]),
        text=_stack(text, _round_up(max(map(len, text))), axis=0),
        text_lengths=np.array([len(t) for t in text], np.int32),
        text_words=np.array([request.text_words for request in requests], np.int32),
    )


def _stack(arrays: Sequence[np.ndarray], length: int, axis: int) -> np.ndarray:
    """Stacks arrays padded with zeros to `length` along `axis`."""
    padded = []
    for array in arrays:
        pads = [(0, 0)] * array.ndim
        pads[axis] = (0, length - array.shape[axis])
        padded.append(np.pad(array, pads))
    return np.stack(padded).astype(np.int32)


def _round_up(length: int) -> int:
    return -(-length // _BUCKET) * _BUCKET
