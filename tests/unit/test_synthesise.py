import json
import random

import numpy as np
import pytest

from data_pipelines import corpora, synthesise
from slm_jax.audio import decode
from slm_jax.errors import UserError
from slm_jax.streams import fingerprint


class Tone:
    """A voice that hums: as long as the rate says, and at a pitch that it draws."""

    speaker, licence, source = "tone", "CC0-1.0", "hum:tone"

    def speak(self, text, rate, rng):
        time = np.arange(int(16_000 * rate)) / 16_000
        return (0.5 * np.sin(2 * np.pi * (100 + 300 * rng.random()) * time)).astype(np.float32)


@pytest.fixture
def hum(monkeypatch):
    monkeypatch.setattr(synthesise, "open_voice", lambda name: Tone())


def sentences(folder, *lines):
    path = folder / "sentences.txt"
    path.write_text("\n".join(lines))
    return path


def test_a_corpus_is_made_and_resumed(tmp_path, hum):
    out = tmp_path / "out"
    synthesise.synthesise(sentences(tmp_path, "One   sentence."), out, "hum")
    first = (out / synthesise.MANIFEST).read_bytes()
    path = sentences(tmp_path, "One sentence.", "", "Another one.", "One sentence.")
    manifest = synthesise.synthesise(path, out, "hum")
    assert manifest.read_bytes().startswith(first)
    one, two = (json.loads(line) for line in manifest.read_text().splitlines())
    assert (one["id"], one["text"]) == (fingerprint("One sentence."), "One sentence.")
    assert (two["speaker"], two["licence"], two["source"]) == ("tone", "CC0-1.0", "hum:tone")
    assert two["rate"] == pytest.approx(two["duration"], abs=1e-4)
    found, _ = corpora.read("jsonl", manifest, corpora.Defaults())
    assert [u.text for u in found] == ["One sentence.", "Another one."]
    audio = decode.load(found[1].audio)
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.1, rel=1e-3)


def test_a_finished_corpus_needs_no_voice(tmp_path, hum, monkeypatch):
    path, out = sentences(tmp_path, "One sentence."), tmp_path / "out"
    before = synthesise.synthesise(path, out, "hum").read_bytes()
    monkeypatch.undo()
    after = synthesise.synthesise(path, out, "a voice that does not exist").read_bytes()
    assert after == before


def test_a_manifest_line_cut_by_a_crash_is_dropped(tmp_path, hum):
    path, out = sentences(tmp_path, "One sentence."), tmp_path / "out"
    whole = synthesise.synthesise(path, out, "hum").read_bytes()
    (out / synthesise.MANIFEST).write_bytes(whole + whole[: len(whole) // 2])
    synthesise.synthesise(path, out, "hum")
    assert (out / synthesise.MANIFEST).read_bytes() == whole


def test_the_text_alone_decides_how_it_is_read():
    line = "Some sentence."
    audio, rate = synthesise.read_aloud(Tone(), line)
    again, _ = synthesise.read_aloud(Tone(), line)
    rng = random.Random(line)
    assert rate == rng.uniform(0.8, 1.25)
    np.testing.assert_array_equal(audio, again)
    np.testing.assert_array_equal(audio, synthesise.levelled(Tone().speak(line, rate, rng)))


def test_a_given_rate_changes_no_other_choice():
    drawn, rate = synthesise.read_aloud(Tone(), "Some sentence.")
    fixed, used = synthesise.read_aloud(Tone(), "Some sentence.", rate)
    np.testing.assert_array_equal(drawn, fixed)
    assert used == rate
    assert len(synthesise.read_aloud(Tone(), "Some sentence.", 2.0)[0]) == 32_000


def test_speech_is_levelled_and_its_peaks_are_clipped():
    quiet = 0.001 * np.sin(np.arange(1000, dtype=np.float32))
    assert np.sqrt(np.mean(synthesise.levelled(quiet) ** 2)) == pytest.approx(0.1, rel=1e-3)
    click = np.zeros(1000, np.float32)
    click[500] = 0.2
    assert synthesise.levelled(click).max() == pytest.approx(0.99)
    assert not synthesise.levelled(np.zeros(10, np.float32)).any()


def test_nothing_to_read_or_no_voice_is_one_clear_error(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no file"):
        synthesise.synthesise(tmp_path / "nowhere.txt", out, "piper")
    with pytest.raises(UserError, match="no sentences"):
        synthesise.synthesise(sentences(tmp_path, "", " "), out, "piper")
    with pytest.raises(UserError, match="no voice 'nobody'"):
        synthesise.synthesise(sentences(tmp_path, "Hello."), out, "nobody")
    with pytest.raises(UserError, match=r"0\.0 times"):
        synthesise.synthesise(sentences(tmp_path, "Hello."), out, "piper", rate=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("voice", "licence"),
    [
        ("piper", "CC0-1.0"),
        ("kokoro:jf_alpha", "Apache-2.0"),
        ("flite:rms", "BSD-style (CMU Flite)"),
    ],
)
def test_a_fetched_voice_reads(tmp_path, voice, licence):
    if not voice.startswith("flite"):
        pytest.importorskip("piper")
    path = sentences(tmp_path, "Hello, this is a test.")
    manifest = synthesise.synthesise(path, tmp_path / "out", voice)
    entry = json.loads(manifest.read_text())
    audio = decode.load(tmp_path / "out" / entry["audio"])
    assert len(audio) == pytest.approx(16_000 * entry["duration"], abs=1)
    assert 0.8 < entry["duration"] < 4 and entry["licence"] == licence
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.1, rel=0.02)
