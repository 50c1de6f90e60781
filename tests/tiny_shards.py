"""A dataset with the streams of the main job's shards, of few ids, and systems that fit it.

Eight words follow each other as in a language of little surprise, and how each is said follows from
the word, so that every way to lay it out can be learned in a few hundred steps.
"""

import dataclasses

import numpy as np

from slm_jax.data import dataset, schema
from slm_jax.streams import WORD, StreamSpec

MULAW, LATENTS = "mulaw-1000", "latents"
# Ids of a text, of a codec level, of units and of a TASTE level: in the shards, and here.
SIZES = {49152: 24, 1024: 8, 500: 12, 64: 4}
TEXT, CODEC, UNITS, TASTE = SIZES.values()
TRAIN, HELD_OUT = range(96), range(96, 104)
RATE = 50.0
SPECS = [
    StreamSpec(schema.WORDS, "words", WORD),
    StreamSpec("text-smollm2", "codes", WORD, vocab=(TEXT,), fingerprint="text-1"),
    StreamSpec("taste", "codes", WORD, vocab=(TASTE,) * 4, fingerprint="taste-1"),
    StreamSpec("units", "codes", RATE, vocab=(UNITS,), fingerprint="units-1"),
    StreamSpec("codec", "codes", RATE, vocab=(CODEC,) * 6, fingerprint="codec-1"),
    StreamSpec(MULAW, "codes", 1000.0, vocab=(4 * TASTE,), fingerprint="mulaw-1"),
    StreamSpec(LATENTS, "continuous", RATE, width=32, fingerprint="latents-1"),
]
STARTS = np.arange(TEXT) % 2 == 0  # an odd id goes on with the word before it


def record(number):
    """Two to four words of one or two ids, each of four to six frames."""
    random = np.random.default_rng(number)
    said = [int(random.integers(8))]
    for _ in range(random.integers(1, 4)):
        said.append((3 * said[-1] + 1) % 8 if random.random() < 0.9 else int(random.integers(8)))
    sizes, frames = [1 + word % 2 for word in said], [4 + word % 3 for word in said]
    ids = [8 + 2 * word + n for word, size in zip(said, sizes, strict=True) for n in range(size)]
    spoken = [(word, n) for word, count in zip(said, frames, strict=True) for n in range(count)]
    streams = {
        "taste": [[(word + level) % TASTE for level in range(4)] for word in said],
        "units": [[(2 * word + n // 2) % UNITS] for word, n in spoken],
        # Never 0 in all levels, which would end CSM's.
        "codec": [
            [(word + n * (level + 1) + level) % CODEC for level in range(6)] for word, n in spoken
        ],
        MULAW: [[(word + n * t) % (4 * TASTE)] for word, n in spoken for t in range(20)],
    }
    name, ends = f"u{number}", np.cumsum(frames) / RATE
    words = tuple(
        schema.Word(f"w{word}" + "." * (place % 2), end - count / RATE, end)
        for place, (word, count, end) in enumerate(zip(said, frames, ends, strict=True))
    )
    text = " ".join(word.text for word in words)
    values = {family: np.array(rows, np.int32) for family, rows in streams.items()}
    waves = np.array([word + 8 * n for word, n in spoken])[:, None] * np.arange(1, 33)
    values[LATENTS] = (2**0.5 * np.sin(0.7 * waves)).astype(np.float32)
    return {
        schema.WORDS: schema.Utterance(name, words, "en", "s", float(ends[-1]), "made", text),
        "text-smollm2": schema.StreamItem(
            name, np.array(ids, np.int32)[:, None], np.repeat(np.arange(len(said)), sizes)
        ),
    } | {family: schema.StreamItem(name, items) for family, items in values.items()}


def write_data(root):
    """A dataset of the records in `root`."""
    splits = {"train": [*map(record, TRAIN)], "validation": [*map(record, HELD_OUT)]}
    return dataset.write_dataset(root, "tiny", SPECS, splits, command="make tiny")


def fitted(system):
    """A system over the main job's shards as the same system over these.

    An id, or a number of ids, is a sum of the sizes of vocabularies and a small rest.
    """
    llm = system.model.backbone
    changed = {"backbone": dataclasses.replace(llm, vocab_size=fewer(llm.vocab_size))}
    if system.layout.has_text:
        changed["codebooks"] = fewer(system.model.codebooks)
    model = dataclasses.replace(system.model, **changed)
    return dataclasses.replace(system, layout=fewer(system.layout), model=model)


def fewer(value):
    """An expression, or a number of it, with the vocabularies of `SIZES` exchanged."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        total = 0
        for theirs, ours in SIZES.items():
            count, value = divmod(value, theirs)
            total += count * ours
        return total + value
    if isinstance(value, tuple):
        return tuple(map(fewer, value))
    if dataclasses.is_dataclass(value):
        parts = {f.name: fewer(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
