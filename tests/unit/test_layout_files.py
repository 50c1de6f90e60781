"""Every file of gin/layouts: arranged at its published size, restored, decoded, shown."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from layout_checks import replay

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.layouts import Ctc, Vectors
from slm_jax.layouts.show import page, render

FILES = sorted((config.GIN_DIR / "layouts").glob("*.gin"))
# What is left out by chance cannot be decoded again.
SURE = {"moshi": ["TEXT_MASKED=0.0"], "csm": ["FRAMES=1.0"], "cosyvoice2": ["SHARE=1.0"]}
# Speech enough for text in turns, which no id but the last may end.
LONG = {"cosyvoice2": 24}
# No id tells where these end.
ENDLESS = {"kyutai_tts": ["mimi"], "moshi": ["mimi"], "musicgen": ["encodec-32k"]}
PIECES = [["hell", "o"], ["ther", "e."], ["so", "it", "goes"]]


def record(layout, rng, words=3, frames=6):
    """Random items of all streams of a layout, as long as their rates say; a text id or more a
    word; ids repeat, and none is a special one."""
    special = {id for row in layout.rows for id, _ in row.names}
    fastest = max(stream.rate for stream in layout.streams) or 1.0
    counts = rng.permutation(1 + np.arange(words) % 3)
    spoken, sizes = {}, {}
    for stream in layout.streams:
        levels = zip(stream.ranges, stream.vocab, strict=True)
        for level, ((low, _), size) in enumerate(levels, start=stream.first):
            sizes.setdefault(stream.family, {})[level] = np.setdiff1d(
                np.arange(size), np.array([*special]) - low
            )
        text = stream.family.startswith("text")
        count = counts.sum() if text else round(frames * (stream.rate / fastest or 1))
        index = np.repeat(np.arange(words), counts) if text else None
        spoken[stream.family] = SimpleNamespace(values=count, index=index)
    vectors = {s.family: s.width for s in layout.streams if isinstance(s, Vectors)}
    for family, item in spoken.items():
        if family in vectors:
            item.values = rng.normal(size=(item.values, vectors[family])).astype(np.float32)
            continue
        few = [rng.choice(ids, 3) for _, ids in sorted(sizes[family].items())]
        values = [rng.choice(ids, item.values) for ids in few]
        item.values = np.stack(values, 1).astype(np.int32)
    starts = [*np.sort(rng.uniform(0, frames / fastest, words)), frames / fastest]
    timed = [
        SimpleNamespace(text="w" + "." * rng.integers(2), start=start, end=end)
        for start, end in itertools.pairwise(starts)
    ]
    return spoken | {"words": SimpleNamespace(words=timed)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_arranges_restores_and_decodes(path):
    layout = config.load([path], SURE.get(path.stem, ()), root="Layout")
    for seed in range(3):
        said = record(layout, np.random.default_rng(seed), frames=LONG.get(path.stem, 6))
        key, lengths = (seed,), {f: len(said[f].values) for f in ENDLESS.get(path.stem, ())}
        grid = replay(layout, said, key, lengths) if layout.shift else layout.arrange(said, key)
        assert layout.length(said) >= grid.tokens.shape[1]
        lost = layout.dropped(said, key)
        restored = layout.restore(grid)
        assert restored
        for family, stream in restored.items():
            values = said[family].values[stream.kept, : stream.values.shape[1]]
            np.testing.assert_array_equal(stream.values, values)
            left = set(range(len(said[family].values))) - set(stream.kept.tolist())
            named = {name for name in lost if name.rpartition(".")[0] == family}
            assert left == set().union(*(lost[name] for name in named)) or not layout.shift
        for row, told, weights in zip(layout.rows, grid.targets, grid.weights, strict=True):
            assert (told[weights > 0] >= row.lowest).all() and (
                told[weights > 0] < row.classes
            ).all()
        for row, ids in zip(layout.rows, grid.content, strict=True):
            assert (ids >= -1).all() and (ids < row.vocab).all()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("words", "frames"), [(1, 1), (0, 4), (3, 0), (2, 30)])
def test_every_file_takes_records_of_any_length(path, words, frames):
    layout = config.load([path], root="Layout")
    for seed in range(3):
        said = record(layout, np.random.default_rng(seed), words, frames)
        if layout.holds(Ctc) and not words:
            with pytest.raises(UserError, match="0 columns for"):
                layout.length(said)
            continue
        grid = layout.arrange(said, (seed,))
        assert layout.length(said) >= grid.tokens.shape[1]
        for family, stream in layout.restore(grid).items():
            values = said[family].values[stream.kept, : stream.values.shape[1]]
            np.testing.assert_array_equal(stream.values, values)


def test_spans_of_no_words_end_at_once():
    layout = config.load(["layouts/spirit_lm.gin"], root="Layout")
    grid = replay(layout, record(layout, np.random.default_rng(0), words=0))
    assert grid.targets.tolist() == [[2]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ids_that_share_a_row_differ(path):
    layout = config.load([path], root="Layout")
    placed = layout.place(record(layout, np.random.default_rng(0))).cells
    for row, line in zip(layout.rows, placed, strict=True):
        inside = {(cell["stream"], cell["level"]) for cell in line if cell["stream"] >= 0}
        streams = [(layout.streams[number], level) for number, level in inside]
        ranges = sorted({stream.ranges[level] for stream, level in streams})
        for (_, end), (begin, _) in itertools.pairwise(ranges):
            assert end <= begin, f"{row.name}: {ranges}"
        spoken = {s.ranges[k] for s, k in streams if not s.family.startswith("text")}
        special = {int(cell["id"]) for cell in line if cell["stream"] < 0}
        special -= {s.end for s, _ in streams if s.ends_together}  # where all levels have it
        for low, high in spoken:
            assert not special & set(range(low, high)), f"{row.name}: {low} to {high}, {special}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_shown_by_name(path):
    layout = config.load([path], root="Layout")
    shown = render(layout, PIECES)
    cells = [cell.strip("*") for line in shown.splitlines()[1:] for cell in line.split()[1:]]
    assert not [cell for cell in cells if cell.lstrip("-").isdigit()], shown
    assert layout.name in page(layout, PIECES, 6)


def test_chance_leaves_out_what_it_may():
    moshi = config.load(["layouts/moshi.gin"], ["TEXT_MASKED=1.0"], root="Layout")
    said = record(moshi, np.random.default_rng(0))
    grid = moshi.arrange(said, (0,))
    assert (grid.targets[0] == -1).all() and not grid.weights[0].any()
    assert set(moshi.restore(grid)) == {"mimi", "mimi-user"}
    csm = config.load(["layouts/csm.gin"], ["FRAMES=0.0"], root="Layout")
    weights = csm.arrange(record(csm, np.random.default_rng(0)), (0,)).weights
    assert weights[1].any() and not weights[2:].any()


def test_our_own_streams_take_the_place_of_a_systems():
    bindings = [
        "TEXT_FAMILY=text-smollm2", "TEXT_VOCAB=49152", "FAMILY=units", "VOCAB=500",
        "AUDIO_OFFSET=49152", "INIT=0", "USER=2", "RATE=50.0", "TURNS=(1, 2)",
    ]  # fmt: skip
    layout = config.load(["layouts/glm4_voice.gin"], bindings, root="Layout")
    said = record(layout, np.random.default_rng(0), frames=14)
    grid = replay(layout, said)
    assert set(layout.restore(grid)) == {"text-smollm2", "units"}
    kinds = grid.cells["stream"][0, 1:]
    np.testing.assert_array_equal(kinds, [0, 1, 1] * 6 + [1, 1, -1])
