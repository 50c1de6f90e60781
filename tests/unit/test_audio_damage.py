"""Files that must not get into a dataset: each is refused with a reason, by every decoder."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.audio import container, decode
from slm_jax.audio.errors import AudioError

HERE = ("auto", "soundfile", "pyav")
FORMS = {
    "wav": ("WAV", "PCM_16"),
    "float wav": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def whole(form, seconds=1.0, rate=16_000, channels=1):
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, (int(seconds * rate), channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=FORMS[form][0], subtype=FORMS[form][1])
    return buffer.getvalue()


WHOLE = {form: whole(form) for form in FORMS}


def reason(source, decoder="auto"):
    with pytest.raises(AudioError) as caught:
        decode.load(source, decoder=decoder)
    return caught.value.reason


@pytest.mark.parametrize("decoder", HERE)
@pytest.mark.parametrize("form", FORMS)
def test_half_a_file_is_not_taken_for_a_short_one(form, decoder):
    half = WHOLE[form][: len(WHOLE[form]) // 2]
    assert reason(half, decoder) == ("unreadable" if form == "flac" else "truncated")


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(list(FORMS)), kept=st.floats(0.001, 0.8))
def test_no_cut_goes_unnoticed(form, kept):
    assert reason(WHOLE[form][: max(1, int(len(WHOLE[form]) * kept))]) in (
        "truncated",
        "unreadable",
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_header_gives_the_duration(rate, channels):
    data = whole("mp3", 1.5, rate, channels)
    assert container.declared_seconds(data) == pytest.approx(1.5, abs=0.001)
    tagged = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + data
    assert container.kind(tagged) == "mp3"
    assert container.declared_seconds(tagged) == container.declared_seconds(data)


def test_a_wav_written_to_a_pipe_declares_no_length_and_is_read():
    data = bytearray(WHOLE["wav"])
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(decode.load(bytes(data))) == 16_000


@pytest.mark.parametrize("decoder", HERE)
@pytest.mark.parametrize("name", ["speech.wav", "speech.mp3", "speech.g722", "speech.txt"])
def test_text_under_an_audio_name(tmp_path, name, decoder):
    path = tmp_path / name
    path.write_text("This is not audio.\n" * 100)
    assert reason(path, decoder) == "unreadable"


@pytest.mark.parametrize("decoder", HERE)
def test_random_bytes_are_unreadable(decoder):
    assert reason(np.random.default_rng(1).bytes(5000), decoder) == "unreadable"


def test_missing_file_and_folder(tmp_path):
    assert reason(tmp_path / "absent.wav") == "missing"
    assert reason(tmp_path) == "missing"


def test_no_bytes_and_no_samples(tmp_path):
    (tmp_path / "zero.wav").touch()
    assert reason(tmp_path / "zero.wav") == "empty"
    assert reason(whole("wav", seconds=0)) == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_samples(value):
    buffer = io.BytesIO()
    samples = np.zeros(100, np.float32)
    samples[50] = value
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    assert reason(buffer.getvalue()) == "non-finite"


def test_damage_inside_a_flac_is_found():
    data = bytearray(WHOLE["flac"])
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == "unreadable"


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "cut.wav"
    path.write_bytes(WHOLE["wav"][:1000])
    with pytest.raises(AudioError, match=r"cut\.wav is truncated.*declares 32000 bytes"):
        decode.load(path)
