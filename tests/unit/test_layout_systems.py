"""Layouts of systems of the literature: golden grids (tests/golden), restored, decoded."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_checks import replay

from slm_jax.layouts import (
    Aligned,
    Bistream,
    Copies,
    Ctc,
    Delay,
    Flat,
    Group,
    Inter,
    Layout,
    Masked,
    Merge,
    Nar,
    Par,
    Seq,
    Spans,
    Stream,
    Stretch,
    Thinned,
    Token,
    Typed,
)
from slm_jax.paths import REPO

GRIDS = json.loads((REPO / "tests/golden/layout_grids.json").read_text())
LETTERS = 9  # ids of the toy text
TEXT, CODES, UNITS = "text", "codes", "units"


def text(**fields):
    return Stream(TEXT, (LETTERS,), **fields)


def units(**fields):
    return Stream(UNITS, (8,), **fields)


def codes(levels=2, **fields):
    return Stream(CODES, (8,) * levels, **fields)


def record(letters=3, frames=6, levels=2, rng=None):
    """Text a b c with a word each and a second a word; item i of a stream has id i, or any."""
    drawn = (lambda high, shape: rng.integers(0, high, shape)) if rng else None
    time = letters and frames / letters
    words = [
        SimpleNamespace(text="abc"[n % 3] + "." * (n % 2), start=n * time, end=(n + 1) * time)
        for n in range(letters)
    ]

    def item(count, width, high, index=None):
        plain = np.tile(np.arange(count)[:, None] % high, (1, width))
        return SimpleNamespace(values=drawn(high, plain.shape) if drawn else plain, index=index)

    return {
        "words": SimpleNamespace(words=words),
        TEXT: item(letters, 1, LETTERS, np.arange(letters)),
        CODES: item(frames, levels, 8),
        "user": item(frames, levels, 8),
        UNITS: item(frames, 1, 8),
        "slow": item(-(-frames // 2), 1, 8),
    }


SPOKEN = codes(level_weights=(100.0, 1.0), rate=1.0)
MOSHI = Layout(
    "moshi",
    Par((
        Aligned(text(init=11), SPOKEN, 10, 9, pad_weight=0.5),
        Delay(SPOKEN, (0, 1), end="truncate"),
        Delay(Stream("user", (8, 8), predicted=False), (0, 1), end="truncate"),
    )),
)  # fmt: skip
MINI_OMNI = Layout(
    "mini-omni",
    Par((
        text(eos=10, pad=11),
        Delay(codes(eos=10, pad=11, pad_weight=1.0), (1, 2), fill="pad"),
    )),
)  # fmt: skip
KIMI = Layout(
    "kimi",
    Par((text(eos=10, pad=11), Delay(units(eos=10, pad=11), (2,), fill="pad"))),
)
GLM = Layout("glm", Seq((Inter((text(), units(offset=(20,))), (1, 2)), Token(19, "USER", 1.0))))
STEP = Layout("step", Inter((Stream("sem", (4,)), Stream("ac", (6,), offset=(1024,))), (2, 3)))
OMNIFLATTEN = Layout(
    "omniflatten",
    Inter(
        (
            Stream("user", (8,), offset=(40,), predicted=False),
            text(),
            units(offset=(20,)),
        ),
        (2, 1, 2),
    ),
)
SLAM = Layout("slam-omni", Group(units(eos=9, pad=10), 3))


def cosyvoice(share):
    speech = units(offset=(20,), eos=19)
    turns = Bistream(text(predicted=False), speech, (2, 3), fill=18, task=17, share=share)
    return Layout("cosyvoice2", Seq((Token(16, "SOS"), turns)), initial=False)


CSM = Layout(
    "csm",
    Typed((
        Seq((Token(10, "BOS"), text(predicted=False), Token(11, "EOS"))),
        codes(eos=0, offset=(1, 1)),
    )),
    initial=False,
)  # fmt: skip
TALKER = Layout(
    "talker",
    Par((
        Seq((Token(10, "SPK"), text(predicted=False), Token(11, "TEOS"), Token(12, "TPAD"))),
        Seq((Token(10, "CPAD"), Token(11, "CBOS"), units(eos=9))),
    )),
    initial=False,
)  # fmt: skip
VALLE = Layout(
    "valle ar",
    Seq((text(predicted=False), Token(28, "BOS"), units(offset=(20,), eos=29))),
    initial=False,
)
VALLE_NAR = Layout(
    "valle nar", Typed((text(predicted=False), Nar(codes(), 1))), initial=False, shift=0
)
SPIRIT = Layout(
    "spirit",
    Seq((
        Spans(
            text(),
            Merge((
                Stream("slow", (8,), offset=(40,), rate=0.5, dedup=True),
                units(offset=(20,), rate=1.0, dedup=True),
            )),
            order="either",
            marks=(30, 31),
        ),
        Token(32, "EOS", 1.0),
    )),
)  # fmt: skip
WORD_BY_WORD = Layout(
    "word by word",
    Seq((Spans(text(), units(offset=(20,), rate=1.0)), Token(19, "EOS", 1.0))),
)
BAICHUAN = Layout(
    "baichuan",
    Seq((
        Spans(text(), codes(offset=(20, 0), rate=1.0), words=0, marks=(30, 31)),
        Copies(Token(32, "EOS", 1.0), 2, -1),
    )),
)  # fmt: skip
UNIAUDIO = Layout(
    "uniaudio",
    Seq((
        Copies(text(predicted=False), 2),
        Copies(Token(15, "AUDIO"), 2),
        codes(offset=(20, 20), eos=19),
    )),
)  # fmt: skip
SPEECHGPT = Layout(
    "speechgpt",
    Seq((
        Token(30, "SOSP"), units(offset=(20,), dedup=True), Token(31, "EOSP", 1.0),
        text(), Token(32, "EOA", 1.0),
    )),
    initial=False,
)  # fmt: skip
STRETCHED = Layout("repeat", Par((Stretch(text(eos=10), 2), Delay(units(eos=9), (1,)))))
BLANKED = Layout("blank", Par((Stretch(text(eos=10), 3, blank=11), units(eos=9))))
FLAT = Layout("flat", Seq((Flat(codes(offset=(20, 30))), Token(39, "EOS", 1.0))))
COARSE_FIRST = Layout(
    "coarse first", Seq((Flat(codes(offset=(20, 30)), "codebook"), Token(39, "EOS", 1.0)))
)


def spelt(ids, table):
    return [table.get(int(i), str(i)) for i in ids]


def names(first, count, letter):
    return {first + n: f"{letter}{n}" for n in range(count)}


ABC = {0: "a", 1: "b", 2: "c"}


def test_moshi_and_its_weights():
    words = [SimpleNamespace(text="ab", start=1.0, end=2.9)]
    words.append(SimpleNamespace(text="c", start=4.2, end=5.0))
    said = record()
    said["words"] = SimpleNamespace(words=words)
    said[TEXT] = SimpleNamespace(values=np.arange(3)[:, None], index=np.array([0, 0, 1]))
    grid = replay(MOSHI, said, lengths={CODES: 6})
    table = ABC | {11: "INIT", 10: "PAD", 9: "EPAD"}
    key = 'moshi/interleaver: "ab"@[1.0,2.9] "c"@[4.2,5.0]'
    assert spelt(grid.targets[0], table) == GRIDS[key]["text"]
    wanted = GRIDS["moshi/INPUT  (delays 0,0,1 | user 0,1)"]
    assert spelt(grid.tokens[0], table) == wanted["text"]
    for row, (name, letter) in enumerate(
        {"moshi0": "x", "moshi1": "y", "user0": "u", "user1": "v"}.items(), start=1
    ):
        assert spelt(grid.tokens[row], names(0, 6, letter) | {8: "INIT"}) == wanted[name]
    assert grid.weights[0].tolist() == [0.5, 1, 1, 0.5, 1, 0.5]
    assert grid.weights[1].tolist() == [100] * 6 and grid.weights[2].tolist() == [0, *[1] * 5]
    assert MOSHI.dropped(said) == {"codes.1": [5], "user.1": [5]}


@pytest.mark.parametrize(
    ("starts", "index", "overflow", "wanted"),
    [
        ([0.0, 1.0, 4.2], [0, 1, 2], "drop", ["a", "b", "PAD", "EPAD", "c", "PAD"]),
        ([0.1, 1.2], [0, 0, 1], "drop", ["a", "c", "PAD", "PAD", "PAD", "PAD"]),
        ([0.1, 1.2], [0, 0, 1], "shift", ["a", "b", "c", "PAD", "PAD", "PAD"]),
    ],
)
def test_aligned_text(starts, index, overflow, wanted):
    said = record()
    said["words"] = SimpleNamespace(words=[SimpleNamespace(text="w", start=s) for s in starts])
    said[TEXT] = SimpleNamespace(values=np.arange(3)[:, None], index=np.array(index))
    layout = Layout("aligned", Aligned(text(), units(rate=1.0), 10, 9, overflow=overflow))
    assert spelt(layout.arrange(said).targets[0], ABC | {10: "PAD", 9: "EPAD"}) == wanted


def test_mini_omni():
    grid = replay(MINI_OMNI, record())
    wanted = GRIDS[
        "derived/mini-omni 2 layers delays(1,2): input==target rows; "
        "step0 predicted from <answer_a>/<answer_t>"
    ]
    assert spelt(grid.targets[0], ABC | {10: "EOT", 11: "PADt"}) == wanted["text"]
    for row, letter in ((1, "x"), (2, "y")):
        table = names(0, 6, letter) | {10: "EOA", 11: "PADa"}
        assert spelt(grid.targets[row], table) == wanted[f"A{row - 1}"]
        assert [f"{w:g}" for w in grid.weights[row]] == wanted[f"w_A{row - 1}(SLAM)"]
    assert [f"{w:g}" for w in grid.weights[0]] == wanted["w_text(SLAM)"]


def test_kimi_audio():
    grid = replay(KIMI, record())
    key = next(key for key in GRIDS if key.startswith("derived/kimi-audio"))
    assert spelt(grid.targets[0], ABC | {10: "TEOS", 11: "BLK"}) == GRIDS[key]["text"]
    table = names(0, 6, "x") | {10: "MEND", 11: "BLK"}
    assert spelt(grid.targets[1], table) == GRIDS[key]["audio"]


def test_glm4_voice():
    grid = replay(GLM, record())
    table = ABC | names(20, 6, "x") | {19: "USER"}
    wanted = GRIDS["derived/glm4voice 1:2 (real 13:26) single row"]["seq"]
    assert spelt(grid.targets[0], table) == wanted


def test_step_audio():
    said = {
        "sem": SimpleNamespace(values=np.arange(4)[:, None], index=None),
        "ac": SimpleNamespace(values=np.arange(6)[:, None], index=None),
    }
    grid = replay(STEP, said, lengths={"sem": 4, "ac": 6})
    key = next(key for key in GRIDS if key.startswith("step-audio"))
    assert [str(i) for i in grid.targets[0]] == GRIDS[key]["seq"]


def test_omniflatten():
    said = record()
    said["user"].values = said["user"].values[:, :1]
    grid = replay(OMNIFLATTEN, said, lengths={TEXT: 3, UNITS: 6})
    key = next(key for key in GRIDS if key.startswith("derived/omniflatten"))
    table = ABC | names(20, 6, "x") | names(40, 6, "u")
    assert spelt(grid.targets[0], table) == GRIDS[key]["seq"]
    assert [f"{w:g}" for w in grid.weights[0]] == GRIDS[key]["w"]


def test_slam_omni_groups():
    grid = replay(SLAM, record())
    table = names(0, 6, "x") | {9: "EOA", 10: "PADa"}
    for row in range(3):
        wanted = GRIDS["slam-omni/group G=3 latency=0 (len 3)"][f"layer{row}"]
        assert spelt(grid.targets[row], table) == wanted


@pytest.mark.parametrize(
    ("share", "key"),
    [
        (1.0, "cosyvoice2/bistream mix=[2, 3] text=3 speech=6"),
        (0.0, "cosyvoice2/unistream"),
    ],
)
def test_cosyvoice2(share, key):
    layout = cosyvoice(share)
    grid = replay(layout, record())
    table = {n: f"t{n}" for n in range(3)} | names(20, 6, "s")
    table |= {16: "SOS", 17: "TASK", 18: "FILL", 19: "EOS"}
    assert spelt(grid.tokens[0], table) == GRIDS[key]["input"]
    told = spelt(grid.targets[0], table)
    masked = [cell if w else "." for cell, w in zip(told, grid.weights[0], strict=True)]
    assert masked == GRIDS[key]["target"]


def test_cosyvoice2_with_no_text_left_for_the_last_turn():
    """text = 3, speech = 7, mix 1:2: the tail has no text, and FILL is told at TASK."""
    turns = Bistream(
        text(predicted=False), units(offset=(20,), eos=19), (1, 2), fill=18, task=17, share=1.0
    )
    layout = Layout("cosyvoice2", Seq((Token(16, "SOS"), turns)), initial=False)
    grid = replay(layout, record(letters=3, frames=7))
    table = {n: f"t{n}" for n in range(3)} | names(20, 7, "s")
    table |= {16: "SOS", 17: "TASK", 18: "FILL", 19: "EOS"}
    assert spelt(grid.tokens[0], table)[-4:] == ["s4", "s5", "TASK", "s6"]
    assert spelt(grid.targets[0], table)[-4:] == ["s5", "FILL", "s6", "EOS"]


def test_csm():
    grid = replay(CSM, record(), lengths={})
    key = next(key for key in GRIDS if key.startswith("derived/csm"))
    wanted, empty = GRIDS[key], {-1: "-"}
    table = ABC | {10: "BOS", 11: "EOS"} | empty
    assert spelt(grid.content[0], table) == wanted["text"]
    for row, letter in ((1, "x"), (2, "y")):
        ids = names(1, 6, letter) | {0: "0"} | empty
        assert spelt(grid.content[row], ids) == wanted[f"cb{row - 1} in"]
        told = spelt(grid.targets[row], ids)
        masked = [c if w else "." for c, w in zip(told, grid.weights[row], strict=True)]
        assert masked == wanted["tgt cb0" if row == 1 else "depth tgt"][:-1]


@pytest.mark.parametrize("lengths", [{}, {"codes": 4}])
def test_csm_ends_with_a_frame_of_zeros_and_not_with_a_zero_in_one(lengths):
    read, _ = CSM.of.parts
    layout = dataclasses.replace(CSM, of=Typed((read, codes(eos=0))))
    said = record(frames=4)
    said["codes"].values[:] = [[0, 3], [2, 0], [0, 1], [5, 0]]
    grid = replay(layout, said, lengths=lengths)
    assert grid.content[1:, -5:].tolist() == [[0, 2, 0, 5, 0], [3, 0, 1, 0, 0]]
    np.testing.assert_array_equal(layout.restore(grid)["codes"].values, said["codes"].values)


def test_an_end_that_is_an_id_of_all_levels_stands_in_one_column():
    with pytest.raises(ValueError, match="must stand in one column"):
        Delay(codes(eos=0), (0, 1))
    with pytest.raises(ValueError, match="of all levels, or of none"):
        codes(eos=0, offset=(0, 20))


def test_csm_learns_the_fine_levels_in_a_share_of_the_frames():
    layout = Layout("csm", Thinned(codes(8), 1 / 4))
    said = record(frames=400, levels=8)
    weights = layout.arrange(said, (1, 2, 3)).weights
    assert (weights[0] == 1).all()
    assert (weights[1:] == weights[1]).all() and 60 < weights[1].sum() < 140
    assert not np.array_equal(weights, layout.arrange(said, (1, 2, 4)).weights)
    np.testing.assert_array_equal(weights, layout.arrange(said, (1, 2, 3)).weights)


def test_qwen_talker():
    grid = replay(TALKER, record())
    wanted = GRIDS["derived/qwen2.5-omni talker (1 codebook)"]
    table = ABC | {10: "SPK", 11: "TEOS", 12: "TPAD"}
    assert spelt(grid.tokens[0], table) == wanted["text in"]
    table = names(0, 6, "x") | {10: "CPAD", 11: "CBOS", 9: "CEOS"}
    assert spelt(grid.tokens[1], table) == wanted["codec in"]
    told = spelt(grid.targets[1], table)
    assert [c if w else "." for c, w in zip(told, grid.weights[1], strict=True)] == wanted["target"]


def test_valle():
    wanted = GRIDS["derived/valle ragged: AR row then NAR stage 1"]
    grid = replay(VALLE, record())
    table = ABC | names(20, 6, "x") | {28: "BOS", 29: "EOS"}
    read = [cell for cell in wanted["AR in"] if cell != "/"]
    assert spelt(grid.tokens[0], table) == read
    told = spelt(grid.targets[0], table)
    masked = [c if w else "." for c, w in zip(told, grid.weights[0], strict=True)]
    aims = [cell for cell in wanted["AR tgt"] if cell != "/"]
    assert masked[2:] == aims[2:]  # the golden grid leaves the target at BOS's own column open
    nar = VALLE_NAR.arrange(record())
    assert spelt(nar.tokens[1][3:], names(0, 6, "e(x")) == [
        cell.rstrip(")") for cell in wanted["NAR1 in"][4:]
    ]
    assert spelt(nar.targets[2][3:], names(0, 6, "y")) == wanted["NAR1 tgt"][4:]
    assert (nar.tokens[2] == -1).all() and nar.weights[2].tolist() == [0] * 3 + [1] * 6
    restored = VALLE_NAR.restore(nar)
    np.testing.assert_array_equal(restored[CODES].values, record()[CODES].values)


@pytest.mark.parametrize(("pattern", "order"), [("flatten", "time"), ("coarse_first", "codebook")])
def test_audiocraft_patterns_with_a_row_a_level(pattern, order):
    layout = Layout(pattern, Flat(codes(pad=8), order, "own"))
    grid = replay(layout, record(), lengths={CODES: 6})
    wanted = GRIDS[f"audiocraft/{pattern}/valid=False"]
    for row, letter in enumerate("xy"):
        told = spelt(grid.content[row], names(0, 6, letter) | {8: "S"})
        assert told == wanted[f"cb{row}"][: len(told)]
        assert set(wanted[f"cb{row}"][len(told) :]) <= {"S"}  # `unroll_delay` adds an empty step


def test_spirit_lm_switches_at_words_and_merges_by_time():
    kinds = set()
    for seed in range(4):
        kinds.add(tuple(replay(SPIRIT, record(), (seed,)).cells["stream"][0].tolist()))
    assert len(kinds) > 1 and {-1, 0, 1, 2} in map(set, kinds)
    whole = Layout("merge", Merge((
        Stream("slow", (8,), offset=(40,), rate=0.5), units(offset=(20,), rate=1.0)
    )))  # fmt: skip
    table = names(20, 6, "h") | names(40, 3, "p")
    told = spelt(whole.arrange(record()).targets[0], table)
    assert told == ["p0", "h0", "h1", "p1", "h2", "h3", "p2", "h4", "h5"]


def test_llama_omni():
    layout = Layout(
        "llama-omni", Ctc(Stretch(text(predicted=False), 2), units()), initial=False, shift=0
    )
    said = record(frames=4)
    grid = layout.arrange(said)
    wanted = GRIDS["derived/llama-omni CTC lambda=2 (real 25)"]
    assert [f"h_{cell}" for cell in spelt(grid.tokens[0], ABC)] == wanted["hidden"]
    told = spelt(grid.targets[1], names(0, 4, "u") | {-1: ""})
    assert told == wanted["ctc tgt (unaligned, dedup)"]
    assert grid.weights.tolist() == [[0] * 6, [1] * 4 + [0] * 2]
    assert (grid.tokens[1] == -1).all() and not layout.packs
    np.testing.assert_array_equal(layout.restore(grid)[UNITS].values, said[UNITS].values)


def test_words_beside_their_speech():
    grid = replay(WORD_BY_WORD, record())
    table = ABC | names(20, 6, "x") | {19: "EOS"}
    told = spelt(grid.targets[0], table)
    assert told == ["a", "x0", "x1", "b", "x2", "x3", "c", "x4", "x5", "EOS"]


def test_baichuan_speaks_sentence_by_sentence():
    grid = replay(BAICHUAN, record())
    lead = spelt(grid.targets[0], ABC | names(20, 6, "x") | {30: "T", 31: "A", 32: "EOS"})
    assert lead == ["a", "b", "A", "x0", "x1", "x2", "x3", "T", "c", "A", "x4", "x5", "EOS"]
    below = spelt(grid.targets[1], names(0, 6, "y") | {-1: "-"})
    assert below == ["-", "-", "-", "y0", "y1", "y2", "y3", "-", "-", "-", "y4", "y5", "-"]


SYSTEMS = [
    MOSHI, MINI_OMNI, KIMI, GLM, SLAM, cosyvoice(0.0), CSM, TALKER, VALLE, SPIRIT, WORD_BY_WORD,
    BAICHUAN, UNIAUDIO, SPEECHGPT, STRETCHED, BLANKED, FLAT, COARSE_FIRST,
]  # fmt: skip


@pytest.mark.parametrize("layout", SYSTEMS, ids=lambda layout: layout.name)
@settings(max_examples=8, deadline=None)
@given(letters=st.integers(1, 5), frames=st.integers(1, 9), seed=st.integers(0, 999))
def test_every_layout_decodes_to_its_grid_and_back(layout, letters, frames, seed):
    said = record(letters, frames, rng=np.random.default_rng(seed))
    grid = replay(layout, said, (seed,), lengths={CODES: frames} if (layout is MOSHI) else None)
    assert layout.length(said) >= grid.tokens.shape[1]
    if layout is not SPIRIT:  # the other lengths are not by chance
        assert layout.length(said) == grid.tokens.shape[1]
    for row in range(len(layout.rows)):
        targets = grid.targets[row][grid.weights[row] > 0]
        assert (targets < layout.rows[row].classes).all()
        assert (targets >= layout.rows[row].lowest).all()
    lost = layout.dropped(said, (seed,))
    for family, stream in layout.restore(grid).items():
        np.testing.assert_array_equal(stream.values, said[family].values[stream.kept])
        named = {name for name in lost if name.rpartition(".")[0] == family}
        left = set(range(len(said[family].values))) - set(stream.kept.tolist())
        assert left == set().union(*(lost[name] for name in named))


def test_text_is_masked_now_and_then():
    layout = Layout("masked", Masked(text(), 0.3))
    blank = [(layout.arrange(record(), (seed,)).targets == -1).all() for seed in range(200)]
    assert 35 < sum(blank) < 85


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Seq((text(), codes())), "parts"),
        (lambda: Inter((text(eos=9), units()), (1, 1)), "parts"),
        (lambda: Inter((text(), units()), (1,)), "turns"),
        (lambda: Group(codes(), 2), "of"),
        (lambda: Copies(codes(), 2), "of"),
        (lambda: Flat(codes(eos=9)), "of"),
        (lambda: Stretch(text(), 0), "times"),
        (lambda: Aligned(text(), units(), 10, 9), "beside"),
        (lambda: Merge((units(),)), "parts"),
        (lambda: Spans(text(), units()), "speech"),
        (lambda: Spans(text(), units(rate=1.0), order="either"), "marks"),
        (lambda: Nar(codes(1)), "stage"),
        (lambda: Layout("x", Nar(codes())), "shift"),
        (lambda: Delay(codes(eos=9), (0, 1), end="truncate"), "end"),
        (lambda: Delay(Group(units(), 2), (0, 1)), "by"),
        (lambda: Bistream(text(), units(eos=9), (1, 2), 10, 11), "text"),
        (lambda: Stream("a", (4, 4), offset=(1,)), "offset"),
    ],
)  # fmt: skip
def test_impossible_expressions_name_the_field(make, field):
    with pytest.raises(ValueError, match=rf"^{field}"):
        make()
