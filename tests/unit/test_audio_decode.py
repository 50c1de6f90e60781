"""Whole files: what goes in comes out, at any rate, channel count and format."""

import io
import pickle

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax.audio import decode
from slm_jax.audio.errors import AudioError
from slm_jax.audio.resample import resample
from slm_jax.errors import UserError


def voice(seconds=1.0, rate=16_000, channels=1):
    """A vowel-like buzz with a melody, below 3.5 kHz: survives every format and rate here."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * t + 10 * np.sin(2 * np.pi * t))
    tones = sum(np.sin(k * phase) / k for k in range(1, 20))
    audio = 0.2 * tones * (1 - np.cos(2 * np.pi * t / seconds)) / 2
    return np.stack([audio * 0.8**c for c in range(channels)], axis=1).astype(np.float32)


def encoded(samples, rate, format, subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def encoded_by_ffmpeg(samples, rate, format, codec):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.rint(samples.T * 32767).astype(np.int16), format="s16", layout="mono"
        )
        frame.rate = rate
        for item in (frame, None):
            file.mux(stream.encode(item))
    return buffer.getvalue()


def snr(audio, reference):
    """dB; robust to the few samples by which coded lengths differ."""
    n = min(len(audio), len(reference))
    return 10 * np.log10((reference[:n] ** 2).sum() / ((audio[:n] - reference[:n]) ** 2).sum())


def lag(audio, reference):
    """Samples by which audio comes late, by the peak of the cross-correlation within 5 ms."""
    core = reference[100:-1000]
    lags = range(-80, 81)
    return lags[int(np.argmax([core @ audio[100 + k : 100 + k + len(core)] for k in lags]))]


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 400).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, 6), st.integers(0, 2**32 - 1))
    ),
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]),
    form=st.sampled_from([("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RF64", "PCM_16"), ("FLAC", None)]),
    decoder=st.sampled_from(["auto", "soundfile", "pyav"]),
)
def test_lossless_files_give_the_mean_of_their_channels(samples, rate, form, decoder):
    n, channels, seed = samples
    pcm = np.random.default_rng(seed).integers(-(2**15), 2**15, (n, channels), dtype=np.int16)
    if form[1] == "FLOAT":
        data = encoded(pcm / np.float32(2**15), rate, *form)
    else:
        data = encoded(pcm, rate, *form)
    audio = decode.load(data, rate, decoder)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, pcm.mean(axis=1) / 2**15, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_comes_out_at_the_rate_asked_without_a_shift(rate, channels):
    audio = decode.load(encoded(voice(1.0, rate, channels), rate, "WAV"), 16_000)
    reference = voice(1.0, 16_000, channels).mean(axis=1)
    assert abs(len(audio) - 16_000) <= 1
    assert snr(audio, reference) > 55


@pytest.mark.parametrize(
    ("suffix", "form", "least_snr"),
    [
        (".wav", ("WAV", "PCM_U8"), 20),
        (".wav", ("WAV", "PCM_24"), 100),
        (".wav", ("WAV", "PCM_32"), 100),
        (".wav", ("WAV", "ULAW"), 25),
        (".flac", ("FLAC", "PCM_24"), 100),
        (".mp3", ("MP3", "MPEG_LAYER_III"), 15),
        (".ogg", ("OGG", "VORBIS"), 15),
        (".opus", ("OGG", "OPUS"), 3),  # its speech mode keeps no waveform
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_reads_every_format_aligned(tmp_path, suffix, form, least_snr, channels):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(encoded(voice(channels=channels), 16_000, *form))
    for decoder in ("auto", "soundfile", "pyav"):
        audio = decode.load(path, decoder=decoder)
        assert abs(len(audio) - 16_000) <= 600  # FFmpeg ends a Vorbis stream some blocks early
        reference = voice(channels=channels).mean(axis=1)
        assert snr(audio, reference) > least_snr
        assert lag(audio, reference) == 0


def test_reads_raw_g722_by_its_name(tmp_path):
    data = encoded_by_ffmpeg(voice(), 16_000, "g722", "g722")
    assert len(data) == 8_000  # 64 kbit/s
    path = tmp_path / "x.g722"
    path.write_bytes(data)
    # The codec's two QMF banks delay by 22 samples.
    assert snr(decode.load(path)[22:], voice()[:, 0]) > 15


def test_falls_back_on_pyav_for_what_libsndfile_does_not_know():
    data = encoded_by_ffmpeg(voice(2.0, 44_100), 44_100, "ipod", "aac")
    with pytest.raises(AudioError, match="soundfile cannot read"):
        decode.load(data, decoder="soundfile")
    audio = decode.load(data)
    assert abs(len(audio) / 16_000 - 2.0) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 500),
    seed=st.integers(0, 2**32 - 1),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
)
def test_flac_bytes_keep_16_bit_samples_exactly(n, seed, rate):
    pcm = np.random.default_rng(seed).integers(-(2**15), 2**15, n, dtype=np.int16)
    audio = pcm.astype(np.float32) / 2**15
    data = decode.encode_flac(audio, rate)
    assert data == decode.encode_flac(audio, rate)
    np.testing.assert_array_equal(decode.load(data, rate), audio)


def test_flac_of_nothing_is_refused():
    with pytest.raises(AudioError, match="no samples"):
        decode.encode_flac(np.zeros(0, np.float32))


def test_write_wav_clips_and_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "out.wav"
    decode.write_wav(path, np.array([0.0, 0.5, 2.0, -2.0], np.float32), 8_000)
    np.testing.assert_allclose(decode.load(path, 8_000), [0.0, 0.5, 32767 / 32768, -1.0])
    before = path.read_bytes()
    with pytest.raises(AudioError, match="NaN"):
        decode.write_wav(path, np.array([np.nan], np.float32))
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"cannot write .*nowhere.*No such file"):
        decode.write_wav(tmp_path / "nowhere" / "out.wav", np.zeros(4, np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


def test_resample_keeps_a_band_limited_signal():
    there = resample(voice()[:, 0], 16_000, 44_100)
    assert len(there) == 44_100
    assert snr(resample(there, 44_100, 16_000), voice()[:, 0]) > 80
    with pytest.raises(ValueError, match="positive"):
        resample(there, 0, 16_000)


def test_unknown_decoder_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'soundfile'"):
        decode.load(b"x", decoder="sound_file")


def test_audio_errors_cross_process_boundaries():
    error = pickle.loads(pickle.dumps(AudioError("empty", "x.wav is empty")))
    assert (error.reason, error.message) == ("empty", "x.wav is empty")
    assert "remedy" in str(error)
