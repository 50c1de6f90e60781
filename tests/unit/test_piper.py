import json

import numpy as np
import pytest

from data_pipelines import corpora, fetch, piper
from slm_jax.audio import decode
from slm_jax.errors import UserError


def sentences(folder, *lines):
    path = folder / "sentences.txt"
    path.write_text("\n".join(lines))
    return path


def spoken(out, *lines):
    """What an earlier run left: audio files and manifest lines."""
    out.mkdir()
    with open(out / piper.MANIFEST, "w") as manifest:
        for line in lines:
            name = f"{piper._id(line)}.flac"
            (out / name).write_bytes(decode.encode_flac(np.full(16_000, 0.1)))
            manifest.write(json.dumps({"id": piper._id(line), "audio": name, "text": line}) + "\n")


def test_sentences_that_are_there_are_not_read_again(tmp_path):
    out = tmp_path / "out"
    spoken(out, "One sentence.", "Another one.")
    before = (out / piper.MANIFEST).read_bytes()
    path = sentences(tmp_path, "One   sentence.", "", "Another one.", "One sentence.")
    manifest = piper.synthesise(path, out, voice="a voice that does not exist")
    assert manifest.read_bytes() == before
    found, _ = corpora.read("jsonl", manifest, corpora.Defaults())
    assert [u.text for u in found] == ["One sentence.", "Another one."]


def test_a_manifest_line_cut_by_a_crash_is_dropped(tmp_path):
    out = tmp_path / "out"
    spoken(out, "One sentence.")
    whole = (out / piper.MANIFEST).read_bytes()
    (out / piper.MANIFEST).write_bytes(whole + whole[: len(whole) // 2])
    piper.synthesise(sentences(tmp_path, "One sentence."), out)
    assert (out / piper.MANIFEST).read_bytes() == whole


def test_nothing_to_read_or_no_voice_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="no file"):
        piper.synthesise(tmp_path / "nowhere.txt", tmp_path / "out")
    with pytest.raises(UserError, match="no sentences"):
        piper.synthesise(sentences(tmp_path, "", " "), tmp_path / "out")
    with pytest.raises(UserError, match="no Piper voice"):
        piper.synthesise(sentences(tmp_path, "Hello."), tmp_path / "out", str(tmp_path))


@pytest.mark.slow
def test_the_fetched_voice_reads(tmp_path):
    pytest.importorskip("piper")
    fetch.piper_voice()
    out = tmp_path / "out"
    manifest = piper.synthesise(sentences(tmp_path, "Hello, this is a test."), out)
    entry = json.loads(manifest.read_text())
    audio = decode.load(out / entry["audio"])
    assert len(audio) == pytest.approx(16_000 * entry["duration"], abs=1)
    assert 0.8 < entry["duration"] < 4 and np.abs(audio).max() > 0.1
    assert entry["licence"] == "CC0-1.0"
