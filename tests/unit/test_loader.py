import hashlib
import itertools
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.data import loader as loaders
from slm_jax.data import schema, shards
from slm_jax.data.ahead import Reading
from slm_jax.data.dataset import write_dataset
from slm_jax.data.loader import Loader, host_rows
from slm_jax.data.registry import MixtureSpec
from slm_jax.data.schema import StreamItem, Utterance, Word
from slm_jax.errors import UserError
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.streams import StreamSpec

TEXT = StreamSpec("text-toy", "codes", "word", (100,), fingerprint="bpe")
TASTE = StreamSpec("taste", "codes", "word", (8, 8), fingerprint="starter")
LAYOUT = Layout(
    "toy",
    Par((Text("text-toy", 100, bos=98, eos=99), Delay(Stream("taste", (8, 8)), (1, 2), "word"))),
)
SEQ_LEN = 32
NAMES = ["tokens", "targets", "weights", "segment_ids", "positions", "origins"]


def record(i, words, speech):
    """Word w of record i has ids [i % 97, w]; taste codes are drawn."""
    rng = np.random.default_rng(i)
    said = tuple(Word(f"w{w}", w, w + 1) for w in range(words))
    ids = np.array([[v] for w in range(words) for v in (i % 97, w)], np.int32).reshape(-1, 1)
    index = np.repeat(np.arange(words, dtype=np.int32), 2)
    made = {
        "words": Utterance(f"u{i}", said, "en", "", words, "toy", ""),
        "text-toy": StreamItem(f"u{i}", ids, index),
    }
    if speech:
        made["taste"] = StreamItem(f"u{i}", rng.integers(0, 8, (words, 2)).astype(np.int32))
    return made


def write(root, count, speech, text=TEXT, taste=TASTE):
    rng = np.random.default_rng(1)
    made = [record(i, int(rng.integers(1, 9)), speech) for i in range(count)]
    specs = [schema.words_spec(), text, *([taste] if speech else [])]
    splits = {"train": made, "validation": made[:7]}
    write_dataset(root, root.name, specs, splits, records_per_shard=50)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder / "speech", 120, True)
    write(folder / "text", 60, False)
    return folder


def make(folder, *parts, layout=LAYOUT, batch_size=8, seed=3, **options):
    parts = parts or (("speech", 0.75), ("text", 0.25))
    mixture = MixtureSpec(tuple((str(folder / name), rate) for name, rate in parts))
    cache = folder / "packing"
    return Loader(mixture, layout, batch_size, SEQ_LEN, seed, cache=cache, **options)


@pytest.fixture(scope="module")
def loader(folder):
    return make(folder)


def digest(batch):
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in batch.items()}


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in NAMES)


def segments(batch):
    """(row, record number, slice) of each segment, by the ids of its first word."""
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            columns = np.flatnonzero(ids == segment)
            yield row, slice(columns[0], columns[-1] + 1)


def is_text_only(batch, row):
    return not batch["weights"][row, 1:].any()


def test_a_batch_is_what_the_layout_makes_of_the_records(folder, loader):
    batch = loader.batch(5)
    shapes = {name: (batch[name].shape, batch[name].dtype.name) for name in batch}
    assert shapes == {
        "tokens": ((8, 3, SEQ_LEN), "int32"),
        "targets": ((8, 3, SEQ_LEN), "int32"),
        "weights": ((8, 3, SEQ_LEN), "float32"),
        "segment_ids": ((8, SEQ_LEN), "int32"),
        "positions": ((8, SEQ_LEN), "int32"),
        "origins": ((8, 3, SEQ_LEN), "int32"),
        "seeds": ((8,), "uint32"),
    }
    rng = np.random.default_rng(1)
    counts = [int(rng.integers(1, 9)) for _ in range(120)]
    seen = 0
    for row, columns in segments(batch):
        number = batch["tokens"][row, 0, columns][1]
        words = batch["tokens"][row, 0, columns][2::2]
        known = [i for i in range(120) if i % 97 == number and counts[i] == (words < 98).sum()]
        speech = not is_text_only(batch, row)
        grids = [LAYOUT.arrange(record(i, counts[i], speech)) for i in known]
        assert any(np.array_equal(batch["tokens"][row, :, columns], g.tokens) for g in grids)
        assert any(np.array_equal(batch["targets"][row, :, columns], g.targets) for g in grids)
        assert any(np.array_equal(batch["weights"][row, :, columns], g.weights) for g in grids)
        origins = batch["origins"][row, :, columns] - columns.start
        assert any(np.array_equal(origins, LAYOUT.origins(g.clock)) for g in grids)
        length = columns.stop - columns.start
        np.testing.assert_array_equal(batch["positions"][row, columns], np.arange(length))
        seen += 1
    assert seen > 8
    padding = batch["segment_ids"] == 0
    assert not batch["weights"].swapaxes(1, 2)[padding].any()


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_host_count_changes_nothing(folder, loader, hosts):
    whole = loader.batch(11)
    parts = [make(folder).batch(11, host_rows(8, h, hosts)) for h in range(hosts)]
    for name in NAMES:
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])


def test_hosts_that_share_rows_get_the_same(loader):
    whole, part = loader.batch(2), loader.batch(2, np.array([5, 1, 1]))
    for name in NAMES:
        np.testing.assert_array_equal(part[name], whole[name][[5, 1, 1]])


def test_hosts_must_divide_the_batch():
    with pytest.raises(UserError, match="batch of 8 rows does not divide over 3"):
        host_rows(8, 0, 3)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([0, 7, 1_000_000]),
    st.builds(Reading, threads=st.integers(1, 3), ahead=st.integers(0, 5)),
)
def test_hosts_restarts_and_threads_change_nothing(folder, loader, hosts, runs, first, reading):
    """`runs`: batches between two restarts, each of which opens everything anew."""
    joined, start = [], first
    for count in runs:
        shares = [
            make(folder, reading=reading).iterate(start, start + count, host_rows(8, host, hosts))
            for host in range(hosts)
        ]
        for parts in zip(*shares, strict=True):
            joined.append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
        start += count
    straight = [loader.batch(step) for step in range(first, start)]
    assert [digest(batch) for batch in joined] == [digest(batch) for batch in straight]


def test_a_restart_that_left_batches_unread_goes_on_where_it_was(folder, loader):
    """The iterator had made others ahead."""
    batches = loader.iterate(0, 9)
    read = [next(batches) for _ in range(4)]
    batches.close()
    read += make(folder).iterate(4, 9)
    assert [digest(b) for b in read] == [digest(loader.batch(step)) for step in range(9)]


def test_another_seed_is_another_order(folder, loader):
    assert not equal(loader.batch(0), make(folder, seed=4).batch(0))


def test_a_far_step_is_a_look_up(folder, loader, monkeypatch):
    began = time.process_time()
    far = next(make(folder).iterate(1_000_000))
    assert time.process_time() - began < 1  # of this process, whatever else the machine does
    assert equal(far, loader.batch(1_000_000))
    made = []
    batch = loader.batch

    def watched(step, rows=None):
        made.append(step)
        return batch(step, rows)

    monkeypatch.setattr(loader, "batch", watched)
    next(loader.iterate(1_000_000))
    assert min(made) == 1_000_000 and len(made) < 10  # nothing on the way there


def test_an_epoch_has_every_record_once(folder):
    loader = make(folder, ("speech", 1.0), batch_size=1)
    rows = int(loader.summary()[str(folder / "speech")]["rows"])
    epochs = [
        [tuple(loader.batch(step)["tokens"][0, 0]) for step in range(e * rows, (e + 1) * rows)]
        for e in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    columns = sum(len(list(segments(loader.batch(step)))) for step in range(rows))
    assert columns == 120


def test_rates_are_exact_in_every_window(folder, loader):
    kinds = []
    for step in range(12):
        batch = loader.batch(step)
        kinds += [is_text_only(batch, row) for row in range(8)]
    for width in (4, 8, 40):
        for start in range(len(kinds) - width):
            assert abs(sum(kinds[start : start + width]) - width * 0.25) <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**12))
def test_choose_counts_without_gaps(weights, start):
    rates = [Fraction(w, sum(weights)) for w in weights]
    chosen = [loaders.choose(rates, row) for row in range(start, start + 60)]
    for part, rate in enumerate(rates):
        places = [index for p, index in chosen if p == part]
        assert places == list(range(places[0], places[0] + len(places))) if places else True
        for place, (p, index) in enumerate(chosen):
            if p == part:
                assert abs(index - (start + place) * rate) < len(rates)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**12))
def test_rates_are_met_exactly_in_a_window_that_they_divide(weights, start):
    rates = [Fraction(w, sum(weights)) for w in weights]
    window = sum(weights)
    chosen = [loaders.choose(rates, row)[0] for row in range(start, start + window)]
    assert [chosen.count(part) for part in range(len(rates))] == weights


def test_one_pass_is_the_whole_split_once(folder):
    loader = make(folder, ("speech", 0.5), ("text", 0.5), split="validation", batch_size=4)
    batches = list(loader.one_pass())
    assert {b["tokens"].shape for b in batches} == {(4, 3, SEQ_LEN)}
    assert sum(len(list(segments(b))) for b in batches) == 14
    halves = [list(loader.one_pass(host_rows(4, h, 2))) for h in range(2)]
    for whole, *parts in zip(batches, *halves, strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])


def test_what_does_not_fit_is_left_out_and_counted(folder, tmp_path):
    made = [record(i, 2 + 20 * (i % 5 == 0), True) for i in range(20)]
    write_dataset(tmp_path / "long", "l", [schema.words_spec(), TEXT, TASTE], {"train": made})
    loader = make(tmp_path, ("long", 1.0))
    summary = loader.summary()[str(tmp_path / "long")]
    assert (summary["records"], summary["skipped"]) == (20, 4)
    assert 0 < summary["fill"] <= 1
    write_dataset(tmp_path / "huge", "h", [schema.words_spec(), TEXT, TASTE], {"train": made[:1]})
    with pytest.raises(UserError, match="fits into 32 columns: its shortest takes 46"):
        make(tmp_path, ("huge", 1.0))


class Drawing(Layout):
    """A layout with chance in it: a random id stands where BOS was."""

    def arrange(self, record, key=None):
        grid = super().arrange(record)
        grid.content[0, 0] = np.random.default_rng(key).integers(0, 98)
        return grid


def test_chance_is_drawn_from_seed_step_and_row(folder):
    layout = Drawing("drawing", LAYOUT.of)
    one, other = make(folder, layout=layout), make(folder, layout=layout)
    assert equal(one.batch(7), other.batch(7))
    assert equal(one.batch(7, [3]), {n: v[3:4] for n, v in one.batch(7).items()})
    drawn = [one.batch(step)["tokens"][:, 0, 0].tolist() for step in range(4)]
    assert len({id for batch in drawn for id in batch}) > 10


def test_the_cache_serves_the_next_start(folder, monkeypatch):
    before = make(folder).batch(1)

    def measured(self, record):
        raise AssertionError("lengths were on disk")

    monkeypatch.setattr(Layout, "length", measured)
    assert equal(before, make(folder).batch(1))


def test_streams_that_do_not_fit_the_layout(folder, tmp_path):
    wide = StreamSpec("taste", "codes", "word", (16, 16), fingerprint="starter")
    write(tmp_path / "wide", 5, True, taste=wide)
    with pytest.raises(UserError, match=r"'taste'.*\(16, 16\), the layout says \(8, 8\)"):
        make(tmp_path, ("wide", 1.0))
    write_dataset(tmp_path / "bare", "b", [schema.words_spec()], {"train": []})
    with pytest.raises(UserError, match="none of the layout's streams: text-toy, taste"):
        make(tmp_path, ("bare", 1.0))
    specs = [schema.words_spec(), schema.audio_spec(), TEXT]
    write_dataset(tmp_path / "untokenized", "u", specs, {"train": []}, command="tokenize it")
    with pytest.raises(UserError, match="no family 'taste'") as error:  # speech is not text only
        make(tmp_path, ("untokenized", 1.0))
    assert error.value.remedy == "run: tokenize it"
    other = StreamSpec("text-toy", "codes", "word", (100,), fingerprint="another bpe")
    write(tmp_path / "speech", 5, True)
    write(tmp_path / "text", 5, False, text=other)
    with pytest.raises(UserError, match=r"different tokenizers \(bpe and another bpe\)"):
        make(tmp_path)


def test_damage_met_by_a_prefetch_thread_reaches_the_user(tmp_path):
    write(tmp_path / "speech", 40, True)
    path = tmp_path / "speech" / "taste" / shards.shard_name("train", 0, 1)
    data = bytearray(path.read_bytes())
    for place in range(300, 1500):
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}: record .* is corrupt"):
        list(itertools.islice(make(tmp_path, ("speech", 1.0)).iterate(0), 10))


def test_an_abandoned_iterator_leaves_no_threads(loader):
    before = threading.active_count()
    batches = loader.iterate(0)
    next(batches)
    del batches
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_tensorflow_and_torch_stay_out():
    code = (
        "import sys; import slm_jax.data.loader, slm_jax.data.inspect;"
        "print({'tensorflow', 'torch', 'seqio'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr
