import dataclasses
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import ingest, pool, quarantine
from data_pipelines.corpora import SourceUtterance
from data_pipelines.quarantine import Rejected
from slm_jax.audio import decode
from slm_jax.data import schema, shards
from slm_jax.errors import UserError

LIMITS = ingest.Limits(min_seconds=0.2, max_seconds=2.0)


def tone(seconds, rate=16_000, level=0.3):
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def utterance(path, text="hello", **changes):
    made = SourceUtterance(path.name, path, text, "s", "en", path.name, "CC0")
    return dataclasses.replace(made, **changes)


def wav(folder, name, audio, rate=16_000):
    path = folder / name
    soundfile.write(path, audio, rate)
    return path


def test_good_audio_comes_out_at_16_khz_mono(tmp_path):
    path = wav(tmp_path, "a.wav", np.stack([tone(1, 44_100)] * 2, axis=1), 44_100)
    audio = ingest.load(utterance(path), LIMITS, "auto")
    assert audio.shape == (16_000,) and audio.dtype == np.float32
    assert abs(np.sqrt(np.mean(audio**2)) - 0.3 / np.sqrt(2)) < 1e-3


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (tone(0.1), quarantine.TOO_SHORT),
        (tone(2.5), quarantine.TOO_LONG),
        (np.zeros(16_000), quarantine.SILENT),
        (tone(1, level=1e-3), quarantine.SILENT),
    ],
)
def test_unfit_audio_is_quarantined_with_its_figure(tmp_path, audio, reason):
    rejected = ingest.load(utterance(wav(tmp_path, "a.wav", audio)), LIMITS, "auto")
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert any(c.isdigit() or c == "-" for c in rejected.detail)


def test_a_short_loud_word_in_silence_is_not_silent(tmp_path):
    audio = np.zeros(16_000)
    audio[8_000:9_600] = tone(0.1)
    path = wav(tmp_path, "a.wav", audio)
    assert isinstance(ingest.load(utterance(path), LIMITS, "auto"), np.ndarray)


def test_files_that_are_no_whole_audio(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("this is no audio")
    whole = wav(tmp_path, "whole.wav", tone(1)).read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[: len(whole) // 2])
    reasons = [ingest.load(utterance(p), LIMITS, "auto").reason for p in (text, cut)]
    assert reasons == ["unreadable", "truncated"]
    short = ingest.load(utterance(tmp_path / "whole.wav", seconds=1.5), LIMITS, "auto")
    assert short.reason == quarantine.TRUNCATED
    blank = ingest.load(utterance(tmp_path / "whole.wav", text="  "), LIMITS, "auto")
    assert blank.reason == quarantine.NO_TRANSCRIPT


def test_an_unknown_decoder_is_no_property_of_the_file(tmp_path):
    with pytest.raises(UserError, match="unknown audio decoder"):
        ingest.load(utterance(wav(tmp_path, "a.wav", tone(1))), LIMITS, "sondfile")


def test_segments_of_a_file(tmp_path):
    audio = np.concatenate([np.zeros(8_000), tone(1), np.zeros(8_000)])
    path = wav(tmp_path, "long.wav", audio)
    cut = ingest.load(utterance(path, start=0.5, end=1.5), LIMITS, "auto")
    assert len(cut) == 16_000 and np.abs(cut).min() < np.abs(cut).max()
    np.testing.assert_allclose(cut, tone(1), atol=1e-3)
    beyond = ingest.load(utterance(path, start=1.0, end=3.0), LIMITS, "auto")
    assert beyond.reason == quarantine.TRUNCATED


@settings(max_examples=25, deadline=None)
@given(st.floats(-100, 0), st.integers(1, 4000))
def test_loudest_level_is_that_of_the_tone(db, samples):
    audio = np.full(samples, 10 ** (db / 20), np.float32)
    padded = 0.0 if samples >= ingest.FRAME else 10 * np.log10(samples / ingest.FRAME)
    assert ingest.loudest_db(audio) == pytest.approx(db + padded, abs=0.01)


def corpus(folder, count=3):
    """`count` good files and one of each bad kind."""
    folder.mkdir()
    found = [
        utterance(wav(folder, f"{i}.wav", tone(0.5 + i / 100)), text=f"number {i}")
        for i in range(count)
    ]
    found.append(utterance(wav(folder, "silent.wav", np.zeros(8_000))))
    broken = folder / "broken.wav"
    broken.write_text("no audio")
    return [*found, utterance(broken)]


def test_units_are_made_once_and_skipped_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "UNIT_FILES", 3)
    sources = corpus(tmp_path / "in")
    staging = tmp_path / "staging"
    assert ingest.ingest(sources, staging, LIMITS, "auto", workers=2) == 2
    reader = shards.ShardReader(ingest.staged(staging, "audio", 0, 2))
    assert [id for id, _ in reader] == ["0.wav", "1.wav", "2.wav"]
    audio = decode.load(reader.read(1)[1])
    np.testing.assert_allclose(audio, tone(0.51), atol=1e-3)
    listing = shards.ShardReader(ingest.staged(staging, "listing", 0, 2))
    item = schema.decode("words", *listing.read(1))
    assert (item.text, item.words, item.duration) == ("number 1", (), pytest.approx(0.51))
    rejected = quarantine.read(ingest.rejections(staging, "ingest", 1))
    assert {r.id: r.reason for r in rejected} == {
        "silent.wav": quarantine.SILENT,
        "broken.wav": "unreadable",
    }

    def no_work(*args):
        raise AssertionError("finished units are not run again")

    monkeypatch.setattr(pool, "_worker", no_work)
    assert ingest.ingest(sources, staging, LIMITS, "auto", workers=2) == 2


def test_a_corpus_of_nothing_but_bad_files_is_one_clear_error(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("text")
    with pytest.raises(UserError, match=r"none of the 1 files.*1 unreadable.*a\.wav"):
        ingest.ingest([utterance(path)], tmp_path / "staging", LIMITS, "auto", workers=1)


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_ingest
from data_pipelines import ingest
from data_pipelines.progress import Progress

def kill_all(self, items, seconds):
    os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    folder, staging, kill = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    ingest.UNIT_FILES = 8
    if kill == "kill":
        Progress.advance = kill_all
    sources = [test_ingest.utterance(p) for p in sorted(folder.glob("*.wav"))]
    ingest.ingest(sources, staging, ingest.Limits(), "auto", 2)
"""


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent.name != "ledger" and not p.name.startswith(".")
    }


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    """kill -9 of the whole process tree when the first unit is done, then the same command."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(48):
        if i % 4:
            wav(folder, f"{i:04d}.wav", tone(0.3 + i / 1000))
        else:
            (folder / f"{i:04d}.wav").write_text("no audio")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def run(staging, kill):
        command = [sys.executable, script, Path(__file__).parent, folder, staging, kill]
        return subprocess.run(command, capture_output=True, start_new_session=True, timeout=120)

    assert run(tmp_path / "whole", "").returncode == 0
    assert run(tmp_path / "killed", "kill").returncode == -signal.SIGKILL
    done = len(list((tmp_path / "killed").glob("rejected-ingest/unit-*.jsonl")))
    assert 1 <= done < 6
    assert run(tmp_path / "killed", "").returncode == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
