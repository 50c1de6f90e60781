"""The swap experiment: its statistics on numbers with known answers, its pairs, and it itself."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from tiny_models import load_tiny_taste, tiny_whisper

from slm_jax.audio import decode
from slm_jax.data.schema import AUDIO_RATE, AudioItem, Utterance, Word
from slm_jax.evaluation import readings, regression, report, report_swap, results, swap
from slm_jax.evaluation.prosody import HOP, Judges
from slm_jax.evaluation.readings import PITCH_SHIFTED, RE_SPOKEN, TIME_SCALED
from slm_jax.evaluation.swap_scores import Neighbour, Swap, Values, log_changes, score
from slm_jax.tokenizers.taste import Taste


def test_a_known_line_is_found_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"s{i}" for i in range(60)], 8)
    x = 0.4 + 0.1 * rng.normal(size=len(groups))
    line = regression.fit_line(x, 0.7 * x + 0.05 + 0.02 * rng.normal(size=len(x)), groups)
    assert (line.n, line.groups) == (480, 60)
    for found, known in [(line.slope, 0.7), (line.intercept, 0.05)]:
        assert found.low < known < found.high and found.high - found.low < 0.06
        assert found.value == pytest.approx(known, abs=0.03)
    assert line.correlation.value == pytest.approx(0.07 / math.hypot(0.07, 0.02), abs=0.01)
    assert line.correlation.low < line.correlation.value < line.correlation.high


def test_intervals_cover_as_often_as_they_say_though_words_share_their_sentence():
    """Each sentence has a bent of its own; an interval over words would cover far too seldom."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40).astype(str), 10)
        bent = np.repeat(rng.normal(size=40), 10)
        values = 3 + bent + 0.2 * rng.normal(size=400)
        estimate = regression.fit_mean(values, groups)
        covered += estimate.low <= 3 <= estimate.high
    assert 88 <= covered <= 99


def test_an_exact_line_far_from_zero_has_no_width():
    x = np.array([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 5])
    line = regression.fit_line(x, 2 * x - 3, list("abab"))
    for found, known in [(line.slope, 2), (line.intercept, -3), (line.correlation, 1)]:
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("x, y", [([], []), ([1.0, 1.0], [2.0, 3.0])])
def test_what_is_not_defined_is_not_a_number(x, y):
    line = regression.fit_line(x, y, ["a"] * len(x))
    assert np.isnan(line.slope).all() and np.isnan(line.correlation).all()
    assert np.isnan(regression.fit_mean([], [])).all()


def values(a, b, follow=1.0, leak=0.0, missing=False):
    """A word that becomes `follow` of the way as long as B's; its neighbours `leak` of it."""
    ratio = b / a
    before = Neighbour(0.3, 0.31, 0.3 * ratio**leak)
    after = Neighbour(0.2, 0.19, 0.2 * ratio**leak)
    changed = math.nan if missing else 1.1 * a * ratio**follow
    return Values(a, b, 1.1 * a, changed, 1.1 * b, (before, after))


def swaps(kind, **how):
    rng = np.random.default_rng(1)
    out = []
    for i in range(120):
        a, b = rng.uniform(0.1, 0.6, 2)
        measures = dict.fromkeys(("duration", "own", "pitch"), values(a, b, **how))
        out.append(Swap(kind, f"u{i // 4}", f"s{i // 4}", i % 2 == 0, 1, "w", i % 3 > 0, measures))
    return out


def test_a_swap_that_does_what_it_should_scores_so():
    found = score(RE_SPOKEN, swaps(RE_SPOKEN, follow=0.8))
    assert found["swaps"] == 120 and found["sentences"] == 30
    assert found["recoded"] == pytest.approx(2 / 3)
    assert set(found["measures"]) == {"duration", "own", "pitch"}
    one = found["measures"]["duration"]
    assert one["failed"] == 0
    np.testing.assert_allclose(one["relative"]["slope"], 0.8, atol=1e-9)
    np.testing.assert_allclose(one["relative"]["intercept"], 0, atol=1e-9)
    np.testing.assert_allclose(one["whole"]["slope"], 1, atol=1e-9)
    beside = one["neighbours"]
    assert beside["n"] == 240 and beside["mean"] == (0, 0, 0) and beside["within"] == (1, 1, 1)
    np.testing.assert_allclose(beside["repeated"]["absolute"], 0.01)
    np.testing.assert_allclose(beside["repeated"]["mean"], 0, atol=1e-12)


def test_neighbours_that_follow_along_are_seen():
    found = score(TIME_SCALED, swaps(TIME_SCALED, leak=0.5))
    beside = found["measures"]["duration"]["neighbours"]
    np.testing.assert_allclose(beside["slope"], 0.5, atol=1e-9)
    assert beside["within"][2] < 0.95 and beside["absolute"][1] > 0.01
    assert "pitch" not in found["measures"]


def test_changes_of_pitch_are_in_semitones():
    [one] = swaps(PITCH_SHIFTED)[:1]
    octave = Neighbour(100.0, 100.0, 200.0)
    measures = {"pitch": Values(100.0, 200.0, 100.0, 200.0, 200.0, (octave, octave))}
    found = score(PITCH_SHIFTED, [Swap(**vars(one) | {"measures": measures})])
    assert found["measures"]["pitch"]["neighbours"]["mean"][0] == pytest.approx(12)
    assert found["measures"]["pitch"]["neighbours"]["within"][0] == 0


def test_words_without_a_figure_are_counted_and_not_scored():
    good, bad = swaps(RE_SPOKEN), swaps(RE_SPOKEN, missing=True)
    found = score(RE_SPOKEN, good + bad)["measures"]["duration"]
    assert found["failed"] == 120 and found["relative"]["n"] == found["absolute"]["n"] == 120
    wanted, got = log_changes(good + bad, "duration")
    assert np.isnan(wanted[120:]).all() and np.isfinite(got[:120]).all()


def test_one_word_is_exchanged_and_the_rest_stays():
    codes, others = np.arange(12).reshape(3, 4), 100 + np.arange(12).reshape(3, 4)
    mixed = swap.exchange(codes, others, 1)
    np.testing.assert_array_equal(mixed[1], others[1])
    np.testing.assert_array_equal(mixed[[0, 2]], codes[[0, 2]])
    assert codes[1, 0] == 4


class EqualShares:
    """An aligner that gives each word the same time, and none to those it does not know."""

    def align(self, audio, words):
        step = len(audio) / AUDIO_RATE / len(words)
        return [None if w == "?" else (i * step, (i + 1) * step) for i, w in enumerate(words)]


def test_judges_give_each_word_the_pitch_of_its_own_time():
    def track(audio):
        frames = 1 + audio.shape[1] // HOP
        hertz = np.where(np.arange(frames) * HOP < AUDIO_RATE, 100.0, 200.0)
        return hertz[None], (np.arange(frames) * HOP < 2 * AUDIO_RATE)[None]

    judged = Judges(EqualShares(), track).measure(np.zeros(4 * AUDIO_RATE), ["a", "b", "c", "?"])
    np.testing.assert_allclose(judged.durations, [1, 1, 1, np.nan])
    np.testing.assert_allclose(judged.pitches, [100, 200, np.nan, np.nan])


def record(id, text, speaker="x", seconds=2.0):
    spelled = text.split()
    edges = np.linspace(0, seconds, len(spelled) + 1)
    words = tuple(Word(w, a, b) for w, a, b in zip(spelled, edges, edges[1:], strict=False))
    noise = 0.1 * np.random.default_rng(len(id)).normal(size=int(seconds * AUDIO_RATE))
    return {
        "words": Utterance(id, words, "en", speaker, seconds, "test", text),
        "audio": AudioItem(id, decode.encode_flac(noise.astype(np.float32))),
    }


def test_re_read_sentences_find_each_other():
    records = [
        record("slow", "Press one now.", seconds=3),
        record("quick", "press one, now", seconds=1.5),
        record("middle", "Press one now", seconds=2),
        record("other voice", "Press one now.", speaker="y"),
        record("nobody", "Press one now.", speaker=""),
        record("nobody again", "Press one now.", speaker=""),
        record("other text", "Press two now."),
    ]
    [pair] = readings.re_spoken(records, 9)
    assert [len(one.audio) / AUDIO_RATE for one in pair.readings] == [3, 1.5]
    assert pair.id == "slow" and pair.sentence == "pressonenow" and pair.kind == RE_SPOKEN


def test_changed_readings_keep_their_words_in_place():
    records = [record("a", "one two three four", seconds=2), record("long", "a b c", seconds=21)]
    records += [record("short", "one two"), record("empty", "... for ...")]
    [scaled] = readings.time_scaled(records, 9)
    slow, fast = scaled.readings
    assert len(slow.audio) == round(32_000 / 0.75) and len(fast.audio) == round(32_000 / 1.35)
    for one in (slow, fast):
        assert one.words[-1].end == pytest.approx(len(one.audio) / AUDIO_RATE)
        assert [word.text for word in one.words] == ["one", "two", "three", "four"]
    [shifted] = readings.pitch_shifted(records, 9)
    assert [len(one.audio) for one in shifted.readings] == [32_000, 32_000]
    many = [record(f"u{i}", "a b c") for i in range(8)]
    assert [p.id for p in readings.time_scaled(many, 3)] == [
        p.id for p in readings.pitch_shifted(many, 3)
    ]


def test_inner_words_have_two_neighbours_that_say_something():
    assert readings.inner_words(["one", "two", "three", "four"]) == [1, 2]
    assert readings.inner_words(["one", "...", "three", "four", "five"]) == [3]
    assert readings.inner_words(["one", "two"]) == []


def test_protocol_with_random_weights_leaves_words_players_figures_and_a_section(tmp_path):
    """Equal shares of the time: what the judges say is known, whatever the tokenizer does."""

    def track(audio):
        frames = 1 + audio.shape[1] // HOP
        return np.full((1, frames), 150.0), np.full((1, frames), True)

    whisper = tiny_whisper(tmp_path / "whisper")
    taste = load_tiny_taste(tmp_path / "taste", whisper)
    records = [record("a/1", "One two <three> four."), record("b", "one two ? four five six")]
    twice = [record("slow", "so it is said", seconds=3), record("fast", "so it is said")]
    pairs = readings.time_scaled(records, 9) + readings.re_spoken(twice, 9)
    found = swap.evaluate(taste, pairs, Judges(EqualShares(), track), tmp_path, players=1)
    scaled, spoken = found["kinds"]
    # "a/1" has 2 inner words and "b", where the aligner would know no "?", one: both ways round.
    assert (scaled["swaps"], spoken["swaps"], scaled["sentences"]) == (6, 4, 2)
    assert scaled["measures"]["duration"]["failed"] == 0
    assert spoken["measures"]["pitch"]["relative"]["slope"] == [None] * 3  # no pitch ever differs
    assert found["control"]["swaps"] == 3 and found["control"]["other_length"] == 0
    assert found["control"]["largest_difference"] < 1e-4
    kept, players = swap.load(tmp_path)
    assert [one["kind"] for one in players] == [TIME_SCALED, RE_SPOKEN]
    slow = next(one for one in kept if one.id == "slow" and one.first).measures["duration"]
    assert (slow.a, slow.b) == pytest.approx((3 / 4, 2 / 4))
    assert score(TIME_SCALED, [s for s in kept if s.kind == TIME_SCALED])["recoded"] is not None
    results.save(tmp_path, "swap", found)
    page = report.write(tmp_path).read_text()
    assert page.count("<audio") == 8 and "re-spoken: pitch" in page and "&lt;three&gt;" in page
    assert page.count('class="point"') == 10
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)


def test_nothing_to_swap_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pairs"):
        swap.evaluate(None, [], None, tmp_path)


@pytest.mark.slow
def test_swapped_words_of_real_speech_are_judged_and_reported(tmp_path):
    pytest.importorskip("pocketsphinx")
    from data_pipelines import build, corpora, fetch
    from data_pipelines.build_config import DatasetBuildConfig
    from slm_jax.audio.pitch import pitch
    from slm_jax.data import registry
    from slm_jax.data.split import split_of
    from slm_jax.evaluation.pocket import PocketSphinx
    from slm_jax.evaluation.run import held_out_records

    spoken, _ = corpora.read("asterisk", fetch.prompts(), corpora.Defaults())
    long = [u for u in spoken if len(u.text.split()) >= 5 and split_of(u.text) != "train"]
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text(
        "".join(json.dumps({"audio": str(u.audio), "text": u.text}) + "\n" for u in long[:6])
    )
    root = build.ensure_dataset(
        DatasetBuildConfig(
            name="held_out",
            out=str(tmp_path / "held_out"),
            corpus="jsonl",
            path=str(manifest),
            families=(),
            workers=1,
        )
    )
    opened = registry.get(str(root)).open(["words", "audio"])
    records = held_out_records(opened, ["words", "audio"])
    pairs = readings.time_scaled(records, 2) + readings.pitch_shifted(records, 1)
    taste = Taste.load(fetch.whisper_tiny_en(), fetch.locate("pronunciations"))
    told = []
    found = swap.evaluate(taste, pairs, Judges(PocketSphinx(), pitch), tmp_path, 1, told.append)
    assert told == [1, 1, 1]
    control = found["control"]
    assert control["words_recoded"] == control["other_length"] == 0
    assert control["swaps"] == 3 and control["largest_difference"] < 1e-4
    scaled, shifted = found["kinds"]
    words = sum(min(len(readings.inner_words(_texts(p))), 12) for p in pairs[:2])
    assert scaled["kind"] == TIME_SCALED and scaled["swaps"] == 2 * words
    duration = scaled["measures"]["duration"]
    assert duration["failed"] < scaled["swaps"] / 2
    assert duration["relative"]["n"] == scaled["swaps"] - duration["failed"]
    # Recordings at 0.75 and 1.35 of their tempo: each of B's words is 1.8 times A's or its inverse.
    kept, players = swap.load(tmp_path)
    ratios = [s.measures["duration"].b / s.measures["duration"].a for s in kept if s.first]
    assert np.nanmedian(ratios) == pytest.approx(0.75 / 1.35, rel=0.1)
    assert shifted["measures"]["pitch"]["relative"]["n"] > 0
    assert len(kept) == scaled["swaps"] + shifted["swaps"] and len(players) == 2
    results.save(tmp_path, "swap", found)
    section = report_swap.section(tmp_path, results.load(tmp_path)["swap"])
    assert section.count("<audio") == 8 and section.count("<circle") > words
    assert "Control: 0 of" in section


def _texts(pair):
    return [word.text for word in pair.readings[0].words]
