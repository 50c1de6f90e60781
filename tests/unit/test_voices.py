import json
import random

import numpy as np
import pytest

from data_pipelines import fetch, kokoro, voices
from slm_jax.errors import UserError


@pytest.mark.parametrize(
    ("espeak", "ours"),
    [
        ("ɡˌʊd bˈaɪ wˈɜːld", "ɡˌʊd bˈI wˈɜɹld"),
        ("tʃˈɜːtʃ", "ʧˈɜɹʧ"),
        ("dʒˈɔɪ", "ʤˈY"),
        ("nˈaʊ aɪ seɪ", "nˈW I sA"),
        ("wˈɔːɾɚ", "wˈɔTəɹ"),
        ("lˈɪɾəl", "lˈɪTᵊl"),
        ("ɐbˈaʊt", "əbˈWt"),
        ("ɹˈoʊzᵻz", "ɹˈOzɪz"),
        ("lˈɑːx", "lˈɑk"),
        ("bˈʌtn\u0329, nɔ\u0303", "bˈʌtn, nɔ"),
    ],
)
def test_english_ipa_is_respelt(espeak, ours):
    assert kokoro.respell(espeak) == ours


def test_blend_weights_are_the_normalised_logs_of_draws():
    one, two = kokoro.blend_weights(2, FixedRandom(np.exp(-1), np.exp(-3)))
    assert (one, two) == (pytest.approx(0.25), pytest.approx(0.75))
    assert kokoro.blend_weights(1, FixedRandom(0.3)) == [1.0]
    assert sum(kokoro.blend_weights(5, random.Random(0))) == pytest.approx(1)


class FixedRandom(random.Random):
    def __init__(self, *draws):
        super().__init__()
        self._draws = iter(draws)

    def random(self):
        return next(self._draws)


def test_a_style_is_the_weighted_sum_of_the_rows_for_a_sentence_s_length():
    tables = {
        "a": np.arange(510, dtype=np.float32)[:, None, None] * np.ones((1, 1, 3), np.float32),
        "b": np.full((510, 1, 3), 100, np.float32),
    }
    blended = kokoro.style(tables, ("a", "b"), (0.25, 0.75), symbols=9)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, np.full((1, 3), 0.25 * 8 + 0.75 * 100))
    np.testing.assert_array_equal(kokoro.style(tables, ("a",), (1.0,), 510), tables["a"][509])


def test_silence_around_speech_is_cut_to_a_margin():
    speech = np.full(1000, -0.5, np.float32)
    long, short = np.zeros(24_000, np.float32), np.full(100, 0.009, np.float32)
    assert len(kokoro.trimmed(np.concatenate([long, speech, long]))) == 1000 + 2 * 2400 - 1
    assert len(kokoro.trimmed(np.concatenate([short, speech, short]))) == 1000 + 2 * 100
    assert len(kokoro.trimmed(long)) == 0


@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [
        ("espeak:en", "no voice 'espeak:en'", "kokoro:NAME with NAME of jf_alpha"),
        ("kokoro:af_heart", "no voice 'af_heart'", "jm_kumo"),
        ("kokoro:jf_alpha+", "no voice ''", "jm_kumo"),
        ("kokoro", "no voice ''", "jf_nezumi"),
        ("flite:kal", "no voice 'kal'", "awb, kal16, rms, slt"),
        ("nowhere.onnx", "no voice 'nowhere.onnx'", "flite:NAME with NAME of awb"),
    ],
)
def test_an_unknown_voice_is_named_with_what_there_is(name, message, remedy):
    with pytest.raises(UserError, match=message) as error:
        voices.open_voice(name)
    assert remedy in error.value.remedy


def test_a_folder_without_a_piper_voice_is_named(tmp_path):
    with pytest.raises(UserError, match="no Piper voice"):
        voices.open_voice(str(tmp_path))


@pytest.fixture
def flite_program(tmp_path, monkeypatch):
    """The voice of an asset folder whose program is a script of the test's."""

    def make(script):
        folder = tmp_path / "assets" / "flite"
        (folder / "bin").mkdir(parents=True)
        program = folder / "bin" / "flite"
        program.write_text(script)
        program.chmod(0o755)
        files = {"bin/flite": {"bytes": len(script)}}
        (folder / fetch.MARKER).write_text(json.dumps({"files": files}))
        monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path))
        return voices.open_voice("flite:slt")

    return make


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("#!/bin/sh\necho libasound.so.2: cannot open >&2\nexit 127\n", "libasound"),
        ("no program of this machine", "Exec format error"),
    ],
)
def test_a_flite_that_does_not_run_is_one_clear_error(flite_program, script, detail):
    with pytest.raises(UserError, match=detail) as error:
        flite_program(script).speak("Hello.", 1.0, random.Random(0))
    assert "libasound2" in error.value.remedy


def speaks(voice):
    """Seconds that a voice takes for one sentence, fast and slow."""
    seconds = []
    for rate in (0.8, 1.25):
        audio = voice.speak("Hello, this is a test of a voice.", rate, random.Random(0))
        assert audio.dtype == np.float32 and audio.ndim == 1 and np.abs(audio).max() > 0.05
        seconds.append(len(audio) / 16_000)
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["piper", "kokoro:jm_kumo", "flite:slt"])
def test_a_fetched_voice_speaks_as_slowly_as_it_is_told(name):
    if not name.startswith("flite"):
        pytest.importorskip("piper")
    short, long = speaks(voices.open_voice(name))
    assert 1 < short < 3
    assert 1.2 < long / short < 1.9  # 1.25 / 0.8 = 1.56, pauses and noise apart


@pytest.mark.slow
def test_a_blend_differs_with_its_draw_and_with_nothing_else():
    pytest.importorskip("piper")
    voice = voices.open_voice("kokoro:jf_alpha+jm_kumo")
    assert (voice.speaker, voice.licence) == ("jf_alpha+jm_kumo", "Apache-2.0")
    first, again, other = (voice.speak("Good evening.", 1, random.Random(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or np.abs(first - other).max() > 0.01


@pytest.mark.slow
def test_what_espeak_writes_is_in_kokoro_s_vocabulary():
    pytest.importorskip("piper")
    voice = voices.open_voice("kokoro:jf_alpha")
    heard = {number: symbol for symbol, number in voice._vocabulary.items()}
    text = "A little water by the church."
    assert "".join(heard[i] for i in voice._ids(text)) == "ə lˈɪTᵊl wˈɔTəɹ bI ðə ʧˈɜɹʧ."
