"""Layouts: arranged, restored, decoded, on random streams and random expressions."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_checks import replay

from slm_jax.errors import UserError
from slm_jax.layouts import Delay, Layout, Par, Stream, Text, word_starts
from slm_jax.streams import StreamSpec

VOCAB, BOS, EOS = 40, 1, 2
STARTS = np.arange(VOCAB) % 2 == 0  # even ids begin a word; so does EOS
CODES = (8, 8, 5)

examples = settings(max_examples=25, deadline=None)


def item(values, index=None):
    values = np.asarray(values, np.int32)
    return SimpleNamespace(
        id="r0", values=values, index=None if index is None else np.asarray(index, np.int32)
    )


def taste(by=(1, 2, 3), end="extend", fill="init"):
    speech = Delay(Stream("taste", CODES), by, clock="word", fill=fill, end=end)
    return Layout("test", Par((Text("text", VOCAB, BOS, EOS), speech)))


@st.composite
def records(draw, min_words=0):
    """A record whose words begin where STARTS says, but for the first, which need not."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=min_words, max_size=7))
    ids, index = [], []
    for word, size in enumerate(sizes):
        first = draw(st.integers(2, VOCAB // 2 - 1)) * 2
        rest = draw(st.lists(st.integers(2, VOCAB // 2 - 1), min_size=size - 1, max_size=size - 1))
        ids += [first + (word == 0 and draw(st.integers(0, 1))), *(2 * x + 1 for x in rest)]
        index += [word] * size
    codes = [[draw(st.integers(0, size - 1)) for size in CODES] for _ in sizes]
    return {
        "text": item(np.reshape(ids, (-1, 1)), index),
        "taste": item(np.reshape(codes, (-1, len(CODES)))),
    }


delays = st.tuples(*[st.integers(0, 4)] * len(CODES))
ends = st.sampled_from(["extend", "truncate", "valid_only"])


def test_word_clock_places_each_level_at_its_delayed_words_first_token():
    record = {
        "text": item([[10], [13], [20], [31]], [0, 0, 1, 2]),
        "taste": item([[0, 1, 2], [3, 4, 4], [5, 6, 3]]),
    }
    grid = taste((1, 2, 3)).arrange(record)
    i, p = [8, 8, 5], [9, 9, 6]  # INIT and PAD of each level
    expected = np.array(
        [
            [BOS, 10, 13, 20, 31, EOS, EOS, EOS],
            [i[0], i[0], i[0], 0, 3, 5, p[0], p[0]],
            [i[1], i[1], i[1], i[1], 1, 4, 6, p[1]],
            [i[2], i[2], i[2], i[2], i[2], 2, 4, 3],
        ]
    )
    np.testing.assert_array_equal(grid.content, expected)
    np.testing.assert_array_equal(grid.tokens, expected[:, :-1])
    np.testing.assert_array_equal(grid.targets, expected[:, 1:])
    np.testing.assert_array_equal(
        grid.weights,
        [
            [1, 1, 1, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 1, 1, 1],
        ],
    )
    np.testing.assert_array_equal(grid.clock, [-1, 0, 0, 1, 2, 3, 4, 5])


def test_levels_are_held_without_a_target_over_the_rest_of_a_word():
    record = {"text": item([[10], [20], [31], [33]], [0, 1, 1, 1]), "taste": item([[7, 7, 4]] * 2)}
    grid = taste((1,)).arrange(record)
    np.testing.assert_array_equal(grid.content[1], [8, 8, 7, 7, 7, 7])
    np.testing.assert_array_equal(grid.weights[1], [0, 1, 0, 0, 1])


def test_text_only_records_predict_text_alone():
    record = {"text": item([[10], [13], [20]], [0, 0, 1])}
    layout = taste()
    grid = layout.arrange(record)
    np.testing.assert_array_equal(grid.content[0], [BOS, 10, 13, 20, EOS])
    np.testing.assert_array_equal(grid.content[1:], np.tile([[8], [8], [5]], 5))
    np.testing.assert_array_equal(grid.weights.sum(1), [4, 0, 0, 0])
    assert layout.length(record) == 4
    restored = layout.restore(grid)
    assert set(restored) == {"text"}
    np.testing.assert_array_equal(restored["text"].index, [0, 0, 1])


def assert_restored(layout, record, grid, kept):
    restored = layout.restore(grid)
    for family in layout.families:
        count = len(record[family].values) if family == "text" else kept
        if not count:
            assert family not in restored
            continue
        np.testing.assert_array_equal(restored[family].values, record[family].values[:count])
        if family == "text":
            np.testing.assert_array_equal(restored[family].index, record[family].index)
        else:
            assert restored[family].index is None


@examples
@given(records(), delays, ends, st.sampled_from(["init", "pad"]))
def test_restore_inverts_arrange_and_length_is_known_beforehand(record, by, end, fill):
    layout = taste(by, end, fill)
    grid = layout.arrange(record)
    words = len(record["taste"].values)
    kept = min(words, max(0, words - max(row.delay - row.reach for row in layout.rows[1:])))
    assert_restored(layout, record, grid, kept)
    assert layout.length(record) == grid.tokens.shape[1] == grid.weights.shape[1]
    classes = np.array([row.classes for row in layout.rows])[:, None]
    assert (grid.targets < classes)[grid.weights > 0].all()
    if end == "extend":
        assert kept == words
        np.testing.assert_array_equal(grid.weights[1:].sum(1), words)


@functools.cache
def decoder(layout):
    scheduler = layout.scheduler(STARTS)
    return scheduler, jax.jit(scheduler.next)


def decode(layout, record, prompt_words, rng):
    """Columns that the scheduler makes of a sampler that is right in every sampled cell."""
    scheduler, step = decoder(layout)
    grid = layout.arrange(record)
    prompt = grid.clock < prompt_words
    codes = np.zeros((1, 8, len(CODES)), np.int32)
    codes[0, :prompt_words] = record["taste"].values[:prompt_words]
    ends = layout.ends(grid.clock[prompt])[None]
    state = scheduler.init(codes, np.array([prompt_words]), ends)
    np.testing.assert_array_equal(state.held[0], grid.content[1:, prompt][:, -1])
    columns, clock, chosen = [], [], []
    origins = layout.origins(grid.clock)
    for s in range(prompt.sum(), grid.content.shape[1]):
        assert not state.done[0]
        if grid.clock[s] > grid.clock[s - 1]:
            np.testing.assert_array_equal(scheduler.origins(state)[0], origins[:, s - 1])
        truth = grid.content[:, s]
        noise = rng.integers(0, 5, len(truth))
        candidates = np.where(grid.weights[:, s - 1] > 0, truth, noise)
        state, column, sampled = step(state, candidates[None].astype(np.int32))
        columns.append(column[0])
        clock.append(state.word[0])
        chosen.append(sampled[0])
    assert state.done[0]
    return grid, prompt, np.array(columns).T, np.array(clock), np.array(chosen).T


@examples
@given(records(), delays, ends, st.integers(0, 7), st.integers(0, 2**31))
def test_teacher_forced_samples_reproduce_the_training_grid(record, by, end, prompt_words, seed):
    layout = taste(by, end)
    prompt_words = min(prompt_words, len(record["taste"].values))
    rng = np.random.default_rng(seed)
    grid, prompt, columns, clock, sampled = decode(layout, record, prompt_words, rng)
    np.testing.assert_array_equal(columns, grid.content[:, ~prompt])
    np.testing.assert_array_equal(clock, grid.clock[~prompt])
    items = clock - np.array([row.delay for row in layout.rows])[:, None]
    known = (items < prompt_words) & (np.arange(len(layout.rows)) > 0)[:, None]
    np.testing.assert_array_equal(sampled, (grid.weights[:, prompt.sum() - 1 :] > 0) & ~known)
    whole = layout.collect(
        np.concatenate([grid.content[:, prompt], columns], 1),
        np.concatenate([grid.clock[prompt], clock]),
    )
    restored, expected = layout.restore(whole), layout.restore(grid)
    assert set(restored) == set(expected)
    for family, stream in expected.items():
        np.testing.assert_array_equal(restored[family].values, stream.values)


def expressions():
    """Par and Delay nested at random over the levels of one stream, on the frame clock."""
    stream = Stream("taste", CODES)
    return st.recursive(
        st.just(stream),
        lambda inner: st.builds(
            lambda of, by, end: Delay(of, by, end=end), inner | inner.map(lambda e: Par((e,))),
            delays, ends,
        ),
        max_leaves=4,
    )  # fmt: skip


@examples
@given(records(), expressions())
def test_frame_clock_expressions_restore_and_decode(record, expression):
    layout = Layout("frames", expression)
    frames = len(record["taste"].values)
    grid = layout.arrange(record)
    assert grid.content.shape == (3, 1 + layout.length(record))
    kept = max(0, frames - max(row.delay - row.reach for row in layout.rows))
    assert_restored(layout, record, grid, kept)
    replay(layout, record, lengths={"taste": frames})


@examples
@given(records(), st.integers(0, 3), st.integers(0, 3))
def test_delay_and_par_commute(record, first, second):
    a, b = Stream("a", CODES), Stream("b", (8,))
    record = {"a": record["taste"], "b": item(record["taste"].values[:, :1])}
    by = (first,) * len(CODES)
    outside = Layout("x", Delay(Par((a, b)), (*by, second)))
    inside = Layout("x", Par((Delay(a, by), Delay(b, (second,)))))
    np.testing.assert_array_equal(outside.arrange(record).content, inside.arrange(record).content)
    np.testing.assert_array_equal(outside.arrange(record).weights, inside.arrange(record).weights)
    assert outside.fingerprint() != inside.fingerprint()


def test_decoding_ends_each_sequence_of_a_batch_on_its_own():
    layout = taste((1, 2, 3))
    scheduler = layout.scheduler(STARTS)
    state = scheduler.init(*(np.zeros(shape, np.int32) for shape in ((2, 1, 3), 2, (2, 3))))
    texts = [[11, 20, EOS, 30, 30, 30, 30, 30], [10, 13, 15, 20, 22, EOS, 30, 30]]
    done, text, first = [], [], []
    for s in range(8):
        candidates = np.array([[row[s], 1, 2, 3] for row in texts], np.int32)
        state, column, _ = scheduler.next(state, candidates)
        done.append(np.array(state.done))
        text.append(column[:, 0])
        first.append(column[:, 1])
    np.testing.assert_array_equal(np.array(done).argmax(0), [4, 7])
    np.testing.assert_array_equal(
        np.array(text).T, [[11, 20, *[EOS] * 6], [10, 13, 15, 20, 22, *[EOS] * 3]]
    )
    # Word 0 has begun with the first id although 11 is no word start; PAD (9) follows the flush.
    np.testing.assert_array_equal(
        np.array(first).T, [[8, 1, 1, 9, 9, 9, 9, 9], [8, 8, 8, 1, 1, 1, 9, 9]]
    )


@examples
@given(records(), delays)
def test_each_row_knows_where_the_word_stands_whose_item_comes_next(record, by):
    layout = taste(by)
    grid = layout.arrange(record)
    origins = layout.origins(grid.clock)
    placed = layout.place(record).cells["item"]
    for r, row in enumerate(layout.rows[1:], 1):
        for s in np.flatnonzero(grid.weights[r]):
            word = placed[r, s + 1]
            read = min(np.flatnonzero(grid.clock == word)[-1], s)  # of this word all the text...
            assert origins[r, s] == read
            assert row.delay == 0 or grid.clock[read] == word  # ...if it is written by then
    assert (origins <= np.arange(origins.shape[1])).all()


def test_prompt_grid_stops_before_what_is_to_be_generated():
    record = {"text": item([[10], [13], [20]], [0, 0, 1]), "taste": item([[1, 2, 3], [4, 5, 4]])}
    layout = taste((1, 2, 3))
    prompt = layout.arrange_prompt(record)
    np.testing.assert_array_equal(prompt.content[0], [BOS, 10, 13, 20])
    np.testing.assert_array_equal(prompt.content[1], [8, 8, 8, 1])
    assert prompt.weights.shape == (4, 3)


def test_word_starts():
    pieces = ["Ġthe", "re", "▁a", "<eos>", "Ċ"]
    np.testing.assert_array_equal(word_starts(pieces, eos=3), [True, False, True, True, False])


def test_fingerprint_tells_expressions_apart():
    assert taste().fingerprint() == taste().fingerprint()
    assert taste((1, 1, 1)).fingerprint() != taste((1, 2, 3)).fingerprint()
    assert taste(end="truncate").fingerprint() != taste().fingerprint()


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"taste": item([[0, 0, 0]])}, "text"),
        ({"text": item([[4]], [0]), "taste": item([[0, 0, 0]] * 2)}, "taste 2"),
        ({"text": item([[4]], [0]), "taste": item([[0, 0, 5]])}, "level 2"),
        ({"text": item([[4]], [0]), "taste": item([[0, 0]])}, "2 levels"),
        ({"text": item([[VOCAB]], [0]), "taste": item([[0, 0, 0]])}, "'text'"),
        ({"text": item([[4], [4]], [0, 2]), "taste": item([[0, 0, 0]] * 3)}, "without an id"),
        ({"text": item([[4]]), "taste": item([[0, 0, 0]])}, "no word index"),
        ({"text": item([[4], [EOS]], [0, 1]), "taste": item([[0, 0, 0]] * 2)}, "EOS id 2"),
    ],
)
def test_unfit_records_are_named(record, named):
    with pytest.raises(UserError, match=named) as caught:
        taste().arrange(record)
    assert caught.value.remedy


def test_datasets_are_checked_against_the_layout():
    specs = {
        "text": StreamSpec("text", "codes", "word", (VOCAB,)),
        "taste": StreamSpec("taste", "codes", "word", CODES),
    }
    taste().check(specs)
    Layout("coarse", Stream("taste", CODES[:2])).check(specs)
    Layout("fine", Stream("taste", CODES[2:], first=2)).check(specs)
    with pytest.raises(UserError, match="no stream 'taste'"):
        taste().check({"text": specs["text"]})
    with pytest.raises(UserError, match="codes per level"):
        taste().check(specs | {"taste": StreamSpec("taste", "codes", "word", (8, 8, 8))})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Delay(Stream("a", (4, 4)), (1, 2, 3)), "by"),
        (lambda: Delay(Stream("a", (4,)), (-1,)), "by"),
        (lambda: Delay(Text("t", 9, 0, 1), (1,)), "of"),
        (lambda: Stream("a", ()), "vocab"),
        (lambda: Text("t", 9, 0, 9), "eos"),
        (lambda: Par((Stream("a", (4,)), Text("t", 9, 0, 1))), "parts"),
        (lambda: Layout("x", Par((Stream("a", (4,)), Stream("a", (4,))))), "of"),
        (lambda: Layout("x", Delay(Stream("a", (4,)), (1,), clock="word")), "of"),
        (lambda: Layout("x", Par((Text("t", 9, 0, 1), Delay(Stream("a", (4,)), (1,))))), "of"),
    ],
)
def test_impossible_expressions_name_the_field(make, field):
    with pytest.raises(ValueError, match=rf"^{field}"):
        make()
