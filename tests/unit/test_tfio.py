"""tensorflow-io as a decoder, in its own interpreter: $SLM_JAX_TFIO_PYTHON names it."""

import io
import os
import signal
import sys

import numpy as np
import pytest
import soundfile

from slm_jax.audio import decode, tfio_client
from slm_jax.audio.errors import AudioError
from slm_jax.audio.tfio_client import PYTHON_VARIABLE
from slm_jax.errors import UserError

# What the three decoders may differ by, in full scale; see docs/audio.md.
LOSSLESS, LOSSY = 0.0, 1e-5
PYAV_VORBIS_TAIL = 1024  # samples that FFmpeg leaves out at the end of a Vorbis stream

needs_tfio = pytest.mark.skipif(
    not os.environ.get(PYTHON_VARIABLE),
    reason=f"{PYTHON_VARIABLE} is not set: no tensorflow-io environment (docs/audio.md)",
)


def encoded(rate, channels, format, subtype, seconds=1.0):
    t = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(rate + channels)
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    samples = tone[:, None] * [[1.0, 0.6][:channels]] + rng.normal(0, 0.01, (len(t), channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def worker():
    decoder = tfio_client.shared()
    yield decoder
    decoder.close()
    assert decoder.process_id is None


@pytest.mark.tfio
@needs_tfio
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (("WAV", "PCM_16"), LOSSLESS),
        (("WAV", "PCM_U8"), LOSSLESS),
        (("WAV", "FLOAT"), LOSSLESS),
        (("FLAC", "PCM_16"), LOSSLESS),
        (("FLAC", "PCM_24"), LOSSLESS),
        (("MP3", "MPEG_LAYER_III"), LOSSY),
        (("OGG", "VORBIS"), LOSSY),
    ],
)
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_three_decoders_agree(form, tolerance, rate, channels):
    data = encoded(rate, channels, *form)
    by = {name: decode.load(data, rate, name) for name in ("soundfile", "pyav", "tfio")}
    n = len(by["soundfile"])
    assert n == rate
    assert len(by["tfio"]) == n
    assert n - len(by["pyav"]) in range(PYAV_VORBIS_TAIL if form[1] == "VORBIS" else 1)
    for name in ("pyav", "tfio"):
        error = np.abs(by[name] - by["soundfile"][: len(by[name])]).max()
        assert error <= tolerance, name


@pytest.mark.tfio
@needs_tfio
def test_resampling_is_ours_whoever_decodes():
    data = encoded(44_100, 2, "FLAC", "PCM_16")
    np.testing.assert_array_equal(
        decode.load(data, 16_000, "tfio"), decode.load(data, 16_000, "soundfile")
    )


@pytest.mark.tfio
@needs_tfio
def test_a_bad_file_is_an_error_and_the_worker_lives_on(worker):
    good = encoded(16_000, 1, "WAV", "PCM_16")
    worker.decode(good)
    process = worker.process_id
    mp3 = encoded(16_000, 1, "MP3", "MPEG_LAYER_III")
    for bad in (b"not audio" * 100, mp3[: len(mp3) // 2]):
        with pytest.raises(AudioError, match=r"tensorflow-io cannot decode bad\.bin") as caught:
            worker.decode(bad, "bad.bin")
        assert caught.value.reason == "unreadable"
    samples, rate = worker.decode(good)
    assert (samples.shape, rate) == ((16_000, 1), 16_000)
    assert worker.process_id == process
    assert worker.versions["tensorflow_io"].startswith("0.37")


@pytest.mark.tfio
@needs_tfio
def test_a_dead_worker_is_replaced(worker):
    good = encoded(16_000, 1, "WAV", "PCM_16")
    worker.decode(good)
    os.kill(worker.process_id, signal.SIGSTOP)  # so that it is alive when it is asked
    os.kill(worker.process_id, signal.SIGKILL)
    with pytest.raises(AudioError, match="made the tfio worker exit with status -9"):
        worker.decode(good)
    assert worker.decode(good)[0].shape == (16_000, 1)


@pytest.mark.tfio
@needs_tfio
@pytest.mark.parametrize(
    ("form", "what"),
    [
        (("OGG", "OPUS"), "Opus"),
        (("WAV", "PCM_24"), "24-bit integer WAV"),
        (("WAV", "PCM_32"), "32-bit integer WAV"),
    ],
)
def test_formats_it_cannot_decode_are_named(form, what):
    with pytest.raises(AudioError, match=f"cannot decode {what}") as caught:
        decode.load(encoded(16_000, 1, *form), decoder="tfio")
    assert caught.value.reason == "unsupported"
    assert 'decoder="auto"' in caught.value.remedy


def test_without_its_environment_the_error_says_how_to_make_it(monkeypatch):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    wav = encoded(16_000, 1, "WAV", "PCM_16")
    for python in (None, "/nowhere/python"):
        with pytest.raises(UserError, match=r"pip install -r .*requirements-tfio\.txt"):
            decode.load(wav, decoder="tfio", tfio_python=python)


def test_an_interpreter_without_tensorflow_io_is_named(monkeypatch):
    wav = encoded(16_000, 1, "WAV", "PCM_16")
    with pytest.raises(UserError, match=r"cannot run tensorflow-io: .*tensorflow"):
        decode.load(wav, decoder="tfio", tfio_python=sys.executable)
