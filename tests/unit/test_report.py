import html.parser
import json
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from slm_jax.errors import UserError
from slm_jax.evaluation import figures, report, results
from slm_jax.evaluation.token_statistics import token_statistics

VOID = {"meta", "br", "link", "img", "input"}


class Checker(html.parser.HTMLParser):
    """Follows the tags and collects what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(value.startswith("data:") for value in checker.loads)
    assert "http://" not in page and "https://" not in page and "url(" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
    assert "{{" not in page
    return checker.loads


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "first <run>"
    (folder / "samples").mkdir(parents=True)
    lines = [
        {"step": s, "split": "train", "losses": {"text": 3 - s / 50, "speech/0": 4.0}}
        | {"tokens_per_second": 100.0}
        for s in range(50)
    ]
    lines.append({"step": 40, "split": "eval", "losses": {"text": 2.5}})
    text = "\n".join(map(json.dumps, lines))
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 51, "los')
    (folder / "config.gin").write_text("TrainJob.name = '<script>'\n")
    tone = 0.3 * np.sin(np.arange(16_000) / 20).astype(np.float32)
    soundfile.write(folder / "samples" / "a.wav", tone, 16_000)
    clip = {"name": "original", "file": "a.wav", "text": "press <one>", "heard": "dress <one>"}
    alignment = {"words": [["press", 0.1, 0.5], ["<one>", 0.5, 0.9]], "codes": [[1, 2], [3, 4]]}
    listing = [{"id": "a&b", "clips": [clip], "alignment": alignment}]
    (folder / "samples" / "samples.json").write_text(json.dumps(listing))
    speech = {"level": 0, "n": 9, "cross_entropy": 2.0, "interval": [1.8, 2.2], "accuracy": 0.4}
    language_model = {
        "protocol": "p < q",
        "layout": "taste",
        "utterances": 3,
        "speech": [speech | {"unigram": 3.0, "given_word": 2.5}],
        "text": {
            "n": 30,
            "cross_entropy": 3.0,
            "perplexity": 20.1,
            "reference_cross_entropy": 3.5,
            "reference_perplexity": 33.1,
        },
    }
    results.save(folder, "language_model", language_model)
    score = {"judge": "Whisper", "failed": 1, "wer": 0.125, "low": 0.1, "high": 0.2}
    score |= {"n": 19, "words": 80}
    silent = {"clip": "reconstruction", "judge": "Whisper", "failed": 20}
    scores = [score | {"clip": "continuation"}, silent]
    sound = [{"clip": "original", "figure": "DNSMOS", "value": 3.12, "low": 3, "high": 3.3, "n": 9}]
    results.save(folder, "spoken", {"protocol": "s", "scores": scores, "sound": sound})
    codes = [np.array([[0, 1], [3, 1]]), np.array([[1, 0]])]
    results.save(folder, "tokens", token_statistics(codes, (4, 2), 2.0))
    dataset = {
        "name": "prompts",
        "splits": {"train": {"utterances": 3, "hours": 0.5}},
        "words": 12,
        "quarantined": {"silent": 2},
        "licences": ["CC0"],
    }
    results.save(folder, "datasets", [dataset])
    return folder


def test_report_is_one_sound_file_with_every_part(run):
    page = report.write(run).read_text()
    loads = check(page)
    assert sum(value.startswith("data:audio/flac") for value in loads) == 1
    assert sum(value.startswith("data:image/png") for value in loads) == 1
    shown = ["12.5 %", "33.1", "2.000", "-0.500", "silent 2", "2 of 2", "p &lt; q", "CC0", "3.12"]
    for text in [*shown, "30.0", "first &lt;run&gt;", "&lt;script&gt;", "a&amp;b"]:
        assert text in page, text
    assert "<mark>dress</mark>" in page and "<mark>&lt;one&gt;</mark>" not in page


def test_report_of_an_empty_run_names_what_is_missing(tmp_path):
    page = report.write(tmp_path).read_text()
    check(page)
    for missing in ("No losses", "not evaluated", "Nothing was spoken", "No clips", "No config"):
        assert missing in page


def test_report_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report.write(tmp_path / "absent")


def test_results_keep_other_sections_and_refuse_nan(tmp_path):
    results.save(tmp_path, "one", {"a": np.float32(0.5), "b": np.arange(2)})
    results.save(tmp_path, "two", {"c": 1})
    assert results.load(tmp_path) == {"one": {"a": 0.5, "b": [0, 1]}, "two": {"c": 1}}
    with pytest.raises(ValueError):
        results.save(tmp_path, "two", {"c": float("nan")})
    assert results.load(tmp_path)["two"] == {"c": 1}
    (tmp_path / "eval.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        results.load(tmp_path)


def test_other_runs_stand_beside_if_measured_on_the_same_codes(run, tmp_path):
    own = results.load(run)["language_model"]
    parallel = own | {"speech": [own["speech"][0] | {"cross_entropy": 2.25}], "layout": "flat"}
    results.save(tmp_path / "parallel", "language_model", parallel)
    results.set_beside(run, [tmp_path / "parallel"])
    page = report.write(run).read_text()
    assert "parallel: flat" in page and "2.250" in page and "2.000" in page

    other = own | {"speech": [own["speech"][0] | {"unigram": 3.1}]}
    results.save(tmp_path / "other", "language_model", other)
    with pytest.raises(UserError, match="other held-out codes"):
        results.set_beside(run, [tmp_path / "parallel", tmp_path / "other"])
    with pytest.raises(UserError, match="absent has no held-out figures"):
        results.set_beside(run, [tmp_path / "absent"])
    results.save(tmp_path / "later" / "parallel", "language_model", parallel)
    results.set_beside(run, [tmp_path / "parallel", tmp_path / "later" / "parallel"])
    names = list(results.load(run)["variants"])
    assert len(names) == 2 and [name.endswith("parallel") for name in names] == [True, True]


def test_png_holds_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = figures.png(image)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4])
    rows = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), image)
    assert data.endswith(zlib.crc32(b"IEND").to_bytes(4))


def test_charts_draw_inside_their_box_whatever_the_values():
    values = [1.0, float("nan"), float("inf"), -3.0, 2e5]
    drawn = figures.line_chart([figures.Series("a", range(5), values)], "x", "y")
    path = re.search(r'class="mean".*? d="([^"]*)"', drawn)[1]
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path) if p]
    assert len(points) == 3
    assert all(0 <= x <= figures.WIDTH and 0 <= y <= 300 for x, y in points)
    one = figures.line_chart([figures.Series("a", [3], [3.0], dots=True)], "x", "y")
    assert "<circle" in one
    assert "No values" in figures.line_chart([], "x", "y")


def test_long_curves_are_thinned_and_keep_their_shape():
    y = np.linspace(5, 1, 20_000)
    drawn = figures.line_chart([figures.Series("a", np.arange(20_000), y)], "x", "y")
    assert len(drawn) < 30_000


def test_token_statistics_of_known_codes():
    codes = [np.array([[0, 5], [1, 5], [2, 5]]), np.array([[3, 5]])]
    stats = token_statistics(codes, (4, 8), seconds=2.0)
    first, second = stats["levels"]
    assert first["entropy_bits"] == pytest.approx(2) and first["perplexity"] == pytest.approx(4)
    assert second["entropy_bits"] == 0 and second["used"] == 1
    assert stats["bits_per_second"] == pytest.approx(2 * 5)
    assert stats["entropy_bits_per_second"] == pytest.approx(2 * 2)
    with pytest.raises(ValueError, match="code 5"):
        token_statistics(codes, (4, 5), 1.0)
    with pytest.raises(ValueError, match="at least one"):
        token_statistics([], (4,), 1.0)
