"""Held-out texts spoken by a trained system, and how fast it does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.data.schema import WORDS, Record
from slm_jax.decoding import grid_engine
from slm_jax.decoding.continuation import Continuer, Prompt
from slm_jax.decoding.engine import DecodeLimits, Engine
from slm_jax.decoding.one_shot import OneShot
from slm_jax.decoding.samplers import Sampling
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.evaluation.compare import facts
from slm_jax.layouts import Layout, Nar
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer

Streams = Mapping[str, np.ndarray]  # family -> int [n, levels], or float32 [n, width]


class Decoded(NamedTuple):
    """What a system said of some records.

    Attributes:
      streams: of each.
      seconds: that one record took by itself, with the program compiled.
      columns: of that record.
    """

    streams: list[Streams]
    seconds: float
    columns: int


def decode(
    model: Any,
    layout: Layout,
    records: Sequence[Record],
    sampling: Sampling,
    columns: int,
    reader: Callable[[], tuple[Taste, TextTokenizer]],
    seed: int,
) -> Decoded:
    """Lets a system say records whose text it is given, and the length in items of its speech.

    Args:
      model: with its weights.
      layout: of it.
      records: held-out ones.
      sampling: of speech.
      columns: that a record may take.
      reader: TASTE and the text's tokenizer, for a layout whose words are the clock.
      seed: of the sampler.
    """
    if layout.has_text:
        return _words(model, layout, records, sampling, *reader(), seed)
    if not layout.shift:
        return _at_once(model, layout, records, columns)
    engine = grid_engine.GridEngine(model, layout, sampling=sampling, room=columns)
    known = {
        s.family: -1
        for s in layout.streams
        if s.predicted and (facts.is_text(s) or not any(s.weights))
    }

    def run(some: Sequence[Record]) -> list[Any]:
        lengths = {
            s.family: [len(s.distinct(record[s.family].values)) for record in some]
            for s in facts.said(layout)
        }
        return engine.generate([_given(layout, record) for record in some], known, lengths, seed)

    found, seconds = _timed(lambda: run(records[:1]))
    columns = found[0].grid.content.shape[1] - layout.initial
    if len(records) > 1:
        found = run(records)
    return Decoded([_values(layout, one) for one in found], seconds, columns)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds of a second run, which compiles nothing."""
    run()
    began = time.perf_counter()
    found = run()
    return found, time.perf_counter() - began


def _values(layout: Layout, one: grid_engine.Decoded) -> Streams:
    found = {family: stream.values for family, stream in layout.restore(one.grid).items()}
    if facts.says_vectors(layout):
        row = layout.rows.index(layout.vector_row)
        found[layout.vector_row.family] = one.vectors[one.grid.cells["stream"][row] >= 0]
    return found


def _given(layout: Layout, record: Record) -> dict[str, Any]:
    """What decoding knows: words, texts, and of speech the levels that are not said."""
    upstream = layout.upstream.streams if layout.upstream else ()
    known: dict[str, Any] = {WORDS: record[WORDS]}
    for stream in (*layout.streams, *upstream):
        own = facts.is_text(stream) or not any(stream.weights)
        if own and stream.family in record:
            item = record[stream.family]
            levels = stream.first + len(stream.vocab)
            known[stream.family] = dataclasses.replace(item, values=item.values[:, :levels])
    return known


def _at_once(model: Any, layout: Layout, records: Sequence[Record], columns: int) -> Decoded:
    shot = OneShot(model, layout, columns)
    [said] = facts.said(layout)

    def run(record: Record) -> np.ndarray:
        if layout.holds(Nar):
            return shot.fill(record)
        return shot.units(record)[:, None]

    _, seconds = _timed(lambda: run(records[0]))
    streams = [{said.family: run(record)} for record in records]
    return Decoded(streams, seconds, layout.length(records[0]))


def _words(
    model: Any,
    layout: Layout,
    records: Sequence[Record],
    sampling: Sampling,
    taste: Taste,
    tokenizer: TextTokenizer,
    seed: int,
) -> Decoded:
    """The model is made to say one word of its own after those that it was given: it is cut off."""
    engine = Engine(
        model,
        layout,
        Vocabulary.of(tokenizer, layout),
        text=Sampling(),
        speech=sampling,
        limits=DecodeLimits(min_words=1, max_words=1),
    )
    continuer = Continuer(engine, tokenizer, taste, records[0][WORDS].language)
    prompts = [
        Prompt(tuple(word.text for word in record[WORDS].words), None, taste.default_speaker)
        for record in records
    ]
    _, seconds = _timed(lambda: continuer.write(prompts[:1], seed))
    said = continuer.write(prompts, seed)
    family = facts.said(layout)[0].family
    streams = [
        {family: one.codes[: len(prompt.words)]} for one, prompt in zip(said, prompts, strict=True)
    ]
    return Decoded(streams, seconds, layout.length(records[0]))
