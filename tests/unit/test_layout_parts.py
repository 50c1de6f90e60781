"""Vectors, CTC, states, streams that may be missing, words on request, and links between grids."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_checks import replay

from slm_jax.data import schema
from slm_jax.data.dataset import write_dataset
from slm_jax.data.loader import Loader
from slm_jax.data.registry import MixtureSpec
from slm_jax.data.schema import StreamItem, Utterance
from slm_jax.errors import UserError
from slm_jax.layouts import (
    Copies,
    Ctc,
    Delay,
    Inter,
    Layout,
    Machine,
    Par,
    Seq,
    States,
    Stream,
    Stretch,
    Text,
    Token,
    Typed,
    Vectors,
)
from slm_jax.streams import StreamSpec

READ = Stream("text", (9,), predicted=False)
UNITS = Stream("units", (8,), rate=1.0)
CODES = Stream("codes", (8, 8), rate=1.0)
USER = Stream("user", (8, 8), predicted=False, optional=True)
LATENTS = Vectors("latents", 3, predicted=True)
FEATURES = Vectors("features", 3)

examples = settings(max_examples=10, deadline=None)


def item(values, index=None):
    return SimpleNamespace(id="r0", values=np.asarray(values), index=index)


def record(letters=3, frames=6, seed=0):
    """Text of one id a word, a word a second and a half; random ids, and random vectors."""
    rng = np.random.default_rng(seed)
    words = [SimpleNamespace(text="w", start=1.5 * n, end=1.5 * n + 1) for n in range(letters)]
    return {
        "words": SimpleNamespace(words=words),
        "text": item(rng.integers(0, 9, (letters, 1)), np.arange(letters)),
        "units": item(rng.integers(0, 8, (frames, 1))),
        "codes": item(rng.integers(0, 8, (frames, 2))),
        "user": item(rng.integers(0, 8, (frames, 2))),
        "latents": item(rng.standard_normal((frames, 3)).astype(np.float32)),
        "features": item(rng.standard_normal((frames, 3)).astype(np.float32)),
    }


def without(said, family):
    return {name: value for name, value in said.items() if name != family}


TALKING = Layout("talking", Par((Delay(CODES, (0, 1), end="truncate"), USER)))


def test_a_stream_that_may_be_missing_has_pad_in_its_rows():
    said = record()
    grid = replay(TALKING, without(said, "user"), lengths={"codes": 6})
    assert (grid.content[2:, 1:] == 9).all() and (grid.content[2:, 0] == 8).all()
    np.testing.assert_array_equal(grid.content[:2], TALKING.arrange(said).content[:2])
    assert set(TALKING.restore(grid)) == {"codes"}
    replay(TALKING, said, lengths={"codes": 6})
    assert TALKING.families == ("codes", "user") and TALKING.optional == {"user"}


def test_a_dataset_may_lack_what_is_optional_but_not_have_another_vocabulary():
    codes = StreamSpec("codes", "codes", 1.0, (8, 8))
    TALKING.check({"codes": codes})
    with pytest.raises(UserError, match=r"'user'.*codes per level"):
        TALKING.check({"codes": codes, "user": StreamSpec("user", "codes", 1.0, (8, 9))})
    with pytest.raises(UserError, match="no stream 'codes'"):
        TALKING.check({"user": codes})
    with pytest.raises(UserError, match="no stream codes"):
        TALKING.arrange(without(record(), "codes"))


def test_vectors_that_are_read_stand_in_their_columns():
    layout = Layout("adapter", Par((Stretch(READ, 2), Delay(FEATURES, (1,)))))
    said = record()
    grid = layout.arrange(said)
    vectors = layout.vectors(said, grid)
    assert grid.tokens[1].tolist() == [2, 2, 0, 0, 0, 0, 0] and vectors.dtype == np.float32
    assert layout.vector_row.width == 3 and not layout.vector_row.predicted
    np.testing.assert_array_equal(vectors[2:], said["features"].values[:5])
    assert not vectors[:2].any() and not grid.weights.any()
    np.testing.assert_array_equal(layout.vector_targets(said, grid)[1:], said["features"].values)


@examples
@given(letters=st.integers(1, 4), frames=st.integers(0, 7))
@pytest.mark.parametrize(
    "layout",
    [
        Layout("after", Typed((READ, LATENTS))),
        Layout("beside", Par((Delay(LATENTS, (2,)), Stretch(READ, 2)))),
        Layout("turns", Seq((
            Inter((Stream("text", (9,), offset=(4,), predicted=False),
                   Vectors("latents", 3, predicted=True, eos=False)), (1, 2)),
            Token(2, "END", 1.0),
        ))),
    ],
    ids=lambda layout: layout.name,
)  # fmt: skip
def test_vectors_that_are_predicted_decode_and_end(layout, letters, frames):
    said = record(letters, frames)
    grid = replay(layout, said)
    targets = layout.vector_targets(said, grid)
    held = grid.cells["stream"] == [s.family for s in layout.streams].index("latents")
    told = held[:, 1:].any(0)
    np.testing.assert_array_equal(targets[told], said["latents"].values)
    assert not targets[~told].any()
    assert grid.weights[held[:, 1:]].all() and (grid.targets[held[:, 1:]] == 0).all()
    restored = layout.restore(grid)
    if frames:
        assert restored["latents"].values.shape == (frames, 0)
        np.testing.assert_array_equal(restored["latents"].kept, np.arange(frames))


def test_vectors_of_another_width_are_refused():
    layout = Layout("latents", LATENTS)
    layout.check({"latents": StreamSpec("latents", "continuous", 1.0, width=3)})
    with pytest.raises(UserError, match=r"'latents'.*vectors of 4 numbers; the layout says 3"):
        layout.check({"latents": StreamSpec("latents", "continuous", 1.0, width=4)})
    with pytest.raises(UserError, match=r"'r0' has items of shape \(2,\).* 3 numbers"):
        layout.arrange({"latents": item(np.zeros((5, 2)))})
    with pytest.raises(UserError, match=r"'latents'.*is codes"):
        layout.check({"latents": StreamSpec("latents", "codes", 1.0, (8,))})


CTC = Layout("ctc", Ctc(Stretch(READ, 3), UNITS), initial=False, shift=0)


def test_ctc_takes_units_that_fit_between_blanks():
    said = record(letters=2)
    said["units"] = item([[1], [1], [2], [3], [3]])
    with pytest.raises(UserError, match="'r0' has 6 columns for 5 items of 'units'") as caught:
        CTC.length(said)
    assert "Stretch.times" in caught.value.remedy
    said["units"] = item([[1], [1], [2], [3], [4]])
    grid = CTC.arrange(said)
    assert CTC.length(said) == grid.tokens.shape[1] == 6
    assert grid.targets[1].tolist() == [1, 1, 2, 3, 4, -1]
    np.testing.assert_array_equal(CTC.restore(grid)["units"].values, said["units"].values)
    with pytest.raises(TypeError, match="nothing is scheduled"):
        CTC.scheduler()


def test_records_that_do_not_pack_take_a_row_each(tmp_path):
    made = []
    for n in range(6):
        said = Utterance(f"u{n}", (), "en", "", 1.0, "toy", "")
        text = StreamItem(f"u{n}", np.full((2, 1), n, np.int32), np.arange(2, dtype=np.int32))
        units = StreamItem(f"u{n}", np.arange(4, dtype=np.int32)[:, None])
        made.append({"words": said, "text": text, "units": units})
    specs = [
        schema.words_spec(),
        StreamSpec("text", "codes", "word", (9,), fingerprint="a"),
        StreamSpec("units", "codes", 1.0, (8,), fingerprint="b"),
    ]
    write_dataset(tmp_path / "toy", "toy", specs, {"train": made}, records_per_shard=10)
    mixture = MixtureSpec(((str(tmp_path / "toy"), 1.0),))
    loader = Loader(mixture, CTC, 6, 32, 0, cache=tmp_path / "packing")
    batch = loader.batch(0)
    assert (batch["segment_ids"][:, :6] == 1).all() and not batch["segment_ids"][:, 6:].any()
    assert sorted(batch["tokens"][:, 0, 0].tolist()) == list(range(6))
    [summary] = loader.summary().values()
    assert summary["fill"] == 6 / 32


@pytest.mark.parametrize(
    ("layout", "delay"),
    [
        (Layout("plain", States(CODES)), 0),
        (Layout("delayed", States(Delay(CODES, (0, 2)))), 0),
        (Layout("late", States(Delay(CODES, (1, 2)))), 1),
        (Layout("beside", Par((Stream("text", (9,), eos=9), States(CODES), USER))), 0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_states_say_where_speech_ends_and_are_not_read(layout, delay):
    for frames in (1, 4):
        said = record(letters=3, frames=frames)
        grid = replay(layout, said)
        row = [row.name for row in layout.rows].index("codes.state")
        last = frames - 1 + delay
        assert grid.targets[row, : last + 1].tolist() == [0] * last + [1]
        assert grid.weights[row].tolist() == [1] * (last + 1) + [0] * (
            grid.weights.shape[1] - last - 1
        )
        assert (grid.content[row] == -1).all() and layout.rows[row].classes == 2
        np.testing.assert_array_equal(layout.restore(grid)["codes"].values, said["codes"].values)


def test_the_model_asks_for_words_and_the_host_gives_them():
    text = Stream("text", (9,), weight=0.0, init=11, pad=3)
    layout = Layout("tts", Par((Machine(text, CODES, new_word=0, pad=3), Delay(CODES, (1, 2)))))
    said = record(frames=8)
    said["text"] = item([[4], [5], [6], [7], [8]], np.array([0, 0, 1, 2, 2]))
    times = (0.0, 1.5, 6.2)
    said["words"] = SimpleNamespace(words=[SimpleNamespace(start=time) for time in times])
    grid = replay(layout, said, lengths={"codes": 8})
    assert grid.targets[0].tolist() == [0, 4, 5, 0, 6, 0, 7, 8, 3, 3]
    assert grid.weights[0].tolist() == [1, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert layout.rows[0].classes == 4 and not layout.dropped(said)
    said["words"].words[2].start = 6.9
    said["text"].values[2] = 0  # an id of the text may be that of a mark
    replay(layout, said, lengths={"codes": 8})
    said["words"].words[2].start = 7.1
    assert layout.dropped(said) == {"text.0": [4]}


LINKED = [
    Layout("stretched", Stretch(READ, 3)),
    Layout("ctc", Ctc(Stretch(READ, 3), UNITS), initial=False, shift=0),
    Layout("turns", Seq((Inter((READ, Stream("units", (8,), offset=(20,))), (1, 2)),
                         Token(30, "EOS", 1.0)))),
    Layout("beside", Par((Delay(UNITS, (1,)), Delay(READ, (2,))))),
    Layout("typed", Typed((Seq((Token(10, "BOS"), Stretch(READ, 2))), UNITS)), initial=False),
]  # fmt: skip
UPSTREAM = [
    Layout("text", Stream("text", (9,), eos=9)),
    Layout("repeated", Copies(Seq((Token(9, "BOS"), Stretch(READ, 2), Token(10, "EOS"))), 2)),
    Layout("words", Par((Text("text", 12, 10, 11), Delay(Stream("codes", (8, 8)), (1,), "word")))),
]


@pytest.mark.parametrize("down", LINKED, ids=lambda layout: layout.name)
@pytest.mark.parametrize("up", UPSTREAM, ids=lambda layout: layout.name)
@examples
@given(letters=st.integers(1, 5), data=st.data())
def test_links_lead_to_the_column_that_has_read_the_same_item(down, up, letters, data):
    frames = letters if up.has_text else data.draw(st.integers(0, letters))
    said = record(letters, frames)
    grid, above = down.arrange(said), up.arrange(said)
    links, copies = down.links(grid, up, above, "text"), down.copies(grid, "text")
    assert links.shape == copies.shape == grid.tokens.shape[1:] and links.dtype == np.int32
    assert links.max(initial=-1) < above.tokens.shape[1]

    def shown(layout, grid, column):
        number = [stream.family for stream in layout.streams].index("text")
        cells = grid.cells[:, column]
        return set(cells["item"][(cells["stream"] == number) & ~cells["hidden"]].tolist())

    seen = []
    for column, (link, copy) in enumerate(zip(links, copies, strict=True)):
        here = shown(down, grid, column)
        if link < 0:
            assert not here and copy == 0
        else:
            assert here == shown(up, above, link)
            assert not any(shown(up, above, before) == here for before in range(link))
        run = 0
        while here and run < len(seen) and seen[-1 - run] == here:
            run += 1
        assert copy == run
        seen.append(here)
    with pytest.raises(UserError, match="has no stream 'other'"):
        down.links(grid, up, above, "other")


def test_text_is_read_no_further_than_there_is_something_to_say():
    layout = Layout("turns", Seq((
        Inter((READ, Stream("units", (8,), offset=(20,))), (2, 3)), Token(30, "EOS", 1.0)
    )))  # fmt: skip
    for frames, read in ((0, 2), (2, 2), (3, 4), (6, 5)):
        said = record(letters=5, frames=frames)
        replay(layout, said)
        assert layout.length(said) == read + frames + 1
        assert layout.dropped(said).get("text.0", []) == list(range(read, 5))


def test_parts_of_delayed_rows_follow_each_other():
    codes = Stream("codes", (8, 8), eos=8)
    layout = Layout("typed", Typed((Delay(codes, (0, 2)), READ, Stream("units", (8,), eos=9))))
    for frames in (0, 1, 4):
        said = record(frames=frames)
        restored = layout.restore(replay(layout, said))
        assert all(len(restored[f].values) == frames for f in ("codes", "units") if frames)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Stream("a", (4,), optional=True), "optional"),
        (lambda: Layout("x", Par((Text("t", 9, 0, 1), USER))), "of: a Text row"),
        (lambda: Vectors("a", 0), "width"),
        (lambda: Layout("x", Par((LATENTS, FEATURES))), "of: there may be one row of Vectors"),
        (lambda: Layout("x", Seq((READ, FEATURES))), "of: row .* Stream.offset"),
        (lambda: Layout("x", Seq((READ, Stream("units", (8,), offset=(9,))))), "of: the INIT id 9"),
        (lambda: Layout("x", Ctc(READ, UNITS)), "shift"),
        (lambda: Ctc(Stream("text", (9,)), UNITS), "of"),
        (lambda: Ctc(READ, CODES), "units"),
        (lambda: Ctc(READ, Stream("units", (8,), predicted=False)), "units"),
        (lambda: States(USER), "of"),
        (lambda: States(Par((UNITS, CODES))), "of"),
        (lambda: Machine(Stream("text", (9,)), CODES, 0, 3), "of"),
        (lambda: Machine(Stream("text", (9,), weight=0.0), READ, 0, 3), "beside"),
    ],
)  # fmt: skip
def test_impossible_expressions_name_the_field(make, field):
    with pytest.raises(ValueError, match=rf"^{field}"):
        make()
