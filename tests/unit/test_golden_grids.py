"""Grids of other systems' own code, matched cell by cell. See tests/golden/README.md."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.layouts.show import main, render
from slm_jax.paths import REPO

GRIDS = json.loads((REPO / "tests/golden/layout_grids.json").read_text())
WORD_CLOCK = json.loads((REPO / "tests/golden/taste_word_clock.json").read_text())
FRAMES = 6


def two_levels(delays, end):
    codes = Stream("codes", (FRAMES, FRAMES))
    return Layout("audiocraft", Delay(codes, delays, end=end) if any(delays) else codes)


def record(layout):
    """Item i has id i in every level, so that ids read as frame numbers."""
    levels = {row.family: row.level + 1 for row in layout.rows}
    frames = np.arange(FRAMES)[:, None]
    return {f: SimpleNamespace(values=np.tile(frames, (1, n))) for f, n in levels.items()}


def cells(ids, row, letter, special):
    return [f"{letter}{i}" if i < row.classes else special for i in ids]


@pytest.mark.parametrize(
    ("name", "delays", "end"),
    [
        ("audiocraft/parallel/valid=False", (0, 0), "extend"),
        ("audiocraft/parallel/valid=True", (0, 0), "valid_only"),
        ("audiocraft/delay/valid=False", (0, 1), "extend"),
        ("audiocraft/delay/valid=True", (0, 1), "valid_only"),
    ],
)
def test_audiocraft_patterns(name, delays, end):
    layout = two_levels(delays, end)
    grid = layout.arrange(record(layout))
    for r, letter in enumerate("xy"):
        found = cells(grid.content[r], layout.rows[r], letter, "S")
        assert found == GRIDS[name][f"cb{r}"]


def test_moshi_delays_inputs_targets_and_mask():
    grids = GRIDS["moshi/INPUT  (delays 0,0,1 | user 0,1)"]
    targets = GRIDS["moshi/TARGET (text + moshi only; user rows never predicted by depformer)"]
    mask = GRIDS["moshi/loss mask after undelay (audio, per ORIGINAL frame)"]
    two = (FRAMES, FRAMES)
    layout = Layout(
        "moshi",
        Par((
            Stream("text", (FRAMES,)),  # one id a frame, as the Interleaver leaves it
            Delay(Stream("moshi", two), (0, 1), end="truncate"),
            Delay(Stream("user", two, predicted=False), (0, 1), end="truncate"),
        )),
    )  # fmt: skip
    grid = layout.arrange(record(layout))
    text = GRIDS['moshi/interleaver: "ab"@[1.0,2.9] "c"@[4.2,5.0]']["text"]
    spelt = [*text, "INIT", "PAD"]
    assert [spelt[i] for i in grid.tokens[0]] == grids["text"]
    assert [spelt[i] for i in grid.targets[0]] == targets["text"]
    for r, (name, letter) in enumerate(
        {"moshi0": "x", "moshi1": "y", "user0": "u", "user1": "v"}.items(), start=1
    ):
        row = layout.rows[r]
        assert cells(grid.tokens[r], row, letter, "INIT") == grids[name]
        if row.predicted:
            assert cells(grid.targets[r], row, letter, "INIT") == targets[name]
            trained = np.isin(np.arange(FRAMES), grid.targets[r, grid.weights[r] > 0])
            assert trained.tolist() == [bit == "1" for bit in mask[name]]
        else:
            assert not grid.weights[r].any()


def taste(delays):
    speech = Delay(Stream("taste", (8,) * len(delays)), tuple(delays), clock="word")
    return Layout("taste", Par((Text("text", 32, 1, 2), speech)))


@pytest.mark.parametrize("name", WORD_CLOCK)
def test_taste_word_clock(name):
    case = WORD_CLOCK[name]
    shown = render(taste(case["delays"]), case["words"], case["text_only"])
    _, *rows = (line.split() for line in shown.splitlines())
    assert {head: tail for head, *tail in rows} == case["rows"]


def test_placement_names_the_items_behind_the_cells():
    layout = two_levels((0, 2), "extend")
    cells, clock = layout.place(record(layout))
    assert cells["item"][1].tolist() == [-1] * 3 + list(range(FRAMES))
    assert cells["item"][0].tolist() == [-1, *range(FRAMES), -1, -1]
    init, pad = layout.rows[0].init, layout.rows[0].pad
    assert cells["id"][0][[0, -2, -1]].tolist() == [init, pad, pad]
    assert clock.tolist() == list(range(-1, FRAMES + 2))


def test_the_shipped_system_is_shown_and_overridden_from_the_command_line(monkeypatch, capsys):
    def show(*args):
        monkeypatch.setattr(sys, "argv", ["show", *args])
        main()
        return capsys.readouterr().out

    case = WORD_CLOCK["paper: all levels one word late"]["rows"]
    codes = ["systems/taste.gin", "--gin.CODEBOOKS=(9, 9)"]
    shown = show(*codes, "--gin.DELAYS=(1, 1)", "--piece=3", "--text=hello wor")
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines()[1:4])
    assert rows["taste.1"].split() == ["INIT", "INIT", "INIT", "1.0*", "1.1*"]
    assert rows["text"].split()[:3] == case["text"][:3]
    with pytest.raises(UserError, match=r"DELAYS.*by has 3 delays for 2 rows"):
        show(*codes, "--gin.DELAYS=(1, 1, 1)")
