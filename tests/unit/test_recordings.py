"""Recordings without words: chosen once, by rule, with their licences."""

import io
import json

import av
import numpy as np
import pytest
import soundfile

from slm_jax.errors import UserError

pytest.importorskip("jiwer")  # of extra `eval`, as all that the suite imports
from data_pipelines import fetch
from data_pipelines.recordings import SOURCES, open_recordings

RATE = 16_000


def sound(seconds):
    return (np.random.default_rng(0).normal(size=round(seconds * RATE)) * 0.1).astype(np.float32)


def g722(samples):
    """Raw G.722, as the Asterisk packages hold it."""
    file = io.BytesIO()
    with av.open(file, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE, layout="mono")
        pcm = np.rint(samples * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.rate = RATE
        for item in (frame, None):
            container.mux(stream.encode(item))
    return file.getvalue()


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """Prompts in Spanish and LibriVox, as the fetch leaves them."""
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path))
    prompts, book = tmp_path / "assets" / "prompts_es", tmp_path / "assets" / "librivox"
    for folder in (prompts / "sounds", book):
        folder.mkdir(parents=True)
    for folder in (prompts, book):
        (folder / fetch.MARKER).write_text(json.dumps({"files": {}}))
    seconds = {"uno": 1.2, "dos": 1.5, "tres": 1.4, "cuatro": 1.1, "breve": 0.5}
    for name, length in seconds.items():
        (prompts / "sounds" / f"{name}.g722").write_bytes(g722(sound(length)))
    (prompts / "transcripts.txt").write_text("".join(f"{name}: {name}\n" for name in seconds))
    soundfile.write(book / "a-1.wav", sound(2), RATE)
    (book / "transcription").write_text("<s> a b </s> (a-1)\n")


def test_recordings_are_drawn_by_a_fixed_rule():
    found = open_recordings(["prompts_es", "librivox"], 3)
    assert found.sets == ["prompts_es"] * 3 + ["librivox"]
    assert found.languages == ["es"] * 3 + ["en"] and found.texts == [None] * 3 + ["a b"]
    assert set(found.voices) == {"prompts_es/asterisk-es", "librivox/librivox-austen"}
    assert found.main.tolist() == [False] * 3 + [True] and found.words == [()] * 4
    assert min(map(len, found.audios)) >= RATE and not any("breve" in id for id in found.ids)
    assert found.licences["prompts_es"] == "CC-BY-SA-3.0" and "BSD" in found.licences["librivox"]
    assert open_recordings(["prompts_es", "librivox"], 3).fingerprint == found.fingerprint
    every = open_recordings(["prompts_es"], None)
    assert len(every.ids) == 4 and set(found.ids[:3]) < set(every.ids) and every.main.all()


def test_other_recordings_are_named():
    assert {"prompts_es", "prompts_fr", "prompts_it", "prompts_ru"} < set(SOURCES)
    with pytest.raises(UserError, match="no recordings 'prompts_en'"):
        open_recordings(["prompts_en"], 1)
