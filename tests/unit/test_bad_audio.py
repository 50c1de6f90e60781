"""Whatever a tokenizer is given, it says what is wrong with it, or gives finite numbers of the
shape that it documents."""

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_codecs import TINY_CODECS
from tiny_models import load_tiny_taste, tiny_whisper

from slm_jax.data.schema import Word
from slm_jax.errors import UserError
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.checks import LOUDEST, check_codes, check_rows, mono
from slm_jax.tokenizers.chunked import Window
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.tokenizers.unit_vocoder import UnitNetwork, UnitVocoder, UnitVocoderConfig
from slm_jax.tokenizers.vocoder import VocoderConfig

RATE, UNITS, E = 16_000, 12, 4
STREAMS = ("codec", "mimi", "encodec")
ROWS = 2
few = settings(deadline=None, max_examples=12, derandomize=True)


@st.composite
def sounds(draw, samples):
    """float32 [samples]: silence, clipped, constant, one click, hardly anything, or noise, up to
    what is just let through."""
    peak = draw(st.sampled_from([0.0, 1e-42, 1e-20, 1e-3, 1.0, 3.0, LOUDEST]))
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(size=samples)
    kind = draw(st.sampled_from(["noise", "clipped", "constant", "click"]))
    if kind == "clipped":
        x = np.sign(x)
    if kind == "constant":
        x = np.ones(samples)
    if kind == "click":
        x = np.arange(samples) == draw(st.integers(0, max(samples - 1, 0)))
    return (peak * np.clip(x, -1, 1)).astype(np.float32)


@st.composite
def anything(draw, dims):
    """An array of some type, shape and values."""
    kinds = st.sampled_from(["f2", "f4", "f8", "i2", "i8", "u1", "?", "c8"])
    shape = arrays.array_shapes(min_dims=0, max_dims=dims, min_side=0, max_side=3)
    return draw(arrays.arrays(draw(kinds), draw(shape)))


# ------------------------------------------------------------------------------------- codecs


@pytest.fixture(scope="module", params=TINY_CODECS)
def codec(request):
    return TINY_CODECS[request.param]()


def samples(codec):
    """Of a row of a few frames; whole ones, so that streams can have them."""
    return 8 * getattr(codec, "frame", round(codec.sample_rate / codec.spec.clock))


@few
@given(st.data())
def test_every_sound_has_codes_and_every_code_a_sound(codec, data):
    count = samples(codec)
    audio = np.stack([data.draw(sounds(count)) for _ in range(ROWS)])
    lengths = data.draw(st.lists(st.integers(0, count), min_size=ROWS, max_size=ROWS))
    beyond = np.arange(count) >= np.array(lengths)[:, None]
    codes, frames = codec.encode(np.where(beyond, np.nan, audio).astype(np.float32), lengths)
    codes, frames = np.array(codes), np.array(frames)
    assert codes.shape == (ROWS, codes.shape[1], codec.spec.levels) and codes.dtype == np.int32
    assert (codes >= 0).all() and (codes < codec.spec.vocab).all()
    for row, length in enumerate(lengths):
        assert (frames[row] > 0) == (length > 0) and not codes[row, frames[row] :].any()
    seed = data.draw(st.integers(0, 99))
    for written in (codes, np.random.default_rng(seed).integers(0, codec.spec.vocab, codes.shape)):
        sound = np.asarray(codec.decode(written, frames))
        assert sound.ndim == 2 and len(sound) == ROWS and np.isfinite(sound).all()
        assert not sound[frames == 0].any()


def test_nothing_is_no_frames_and_no_sound(codec):
    for rows, count in ((2, 0), (0, 5), (0, 0)):
        codes, frames = codec.encode(np.zeros((rows, count), np.float32), np.zeros(rows, int))
        assert codes.shape == (rows, 0, codec.spec.levels) and frames.shape == (rows,)
        assert codec.decode(codes, frames).shape == (rows, 0)


def test_one_sample_is_a_frame(codec):
    codes, frames = codec.encode(np.ones((1, 1), np.float32), [1])
    assert frames[0] >= 1 and codes.shape[1] == frames[0]


BAD_AUDIO = {
    "stereo": (np.zeros((2, 9, 2), np.float32), [9, 9], ValueError, "one channel"),
    "no batch": (np.zeros(9, np.float32), [9], ValueError, "one channel"),
    "integers": (np.ones((1, 9), np.int16), [9], ValueError, "int16"),
    "no numbers": (np.array([["a"]]), [1], ValueError, "wanted"),
    "NaN": (np.full((1, 9), np.nan, np.float32), [9], UserError, "row 0 .* not finite"),
    "infinity": (np.array([[0.0], [-np.inf]]), [1, 1], UserError, "row 1 .* not finite"),
    "integers as floats": (np.full((1, 9), 32767.0), [9], UserError, "full scale is 1"),
    "too long": (np.zeros((1, 9), np.float32), [10], ValueError, "not within 0 to 9"),
    "negative": (np.zeros((1, 9), np.float32), [-1], ValueError, "not within 0 to 9"),
    "one length too few": (np.zeros((2, 9), np.float32), [9], ValueError, "lengths"),
    "no length": (np.zeros((1, 9), np.float32), [9.0], ValueError, "lengths"),
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_audio_that_nobody_meant_is_refused(codec, name):
    audio, lengths, error, match = BAD_AUDIO[name]
    with pytest.raises(error, match=match):
        codec.encode(audio, lengths)


def test_codes_that_are_none_are_refused(codec):
    levels, size = codec.spec.levels, codec.spec.vocab[0]
    quiet = np.zeros((ROWS, samples(codec)), np.float32)  # a shape that is compiled
    codes, _ = codec.encode(quiet, [samples(codec)] * ROWS)
    count, codes = codes.shape[1], np.zeros_like(codes[:1])
    for wrong, frames, match in (
        (codes + size, [count], "outside the vocabulary"),
        (codes - 1, [count], "outside the vocabulary"),
        (codes.astype(np.float32), [count], "wanted int"),
        (codes[0], [count], "wanted int"),
        (codes[..., :0], [count], "levels"),
        (np.zeros((1, count, levels + 1), np.int32), [count], "levels"),
        (codes, [count + 1], "not within"),
        (codes, [-1], "not within"),
        (codes, [count, count], "frames"),
    ):
        with pytest.raises(ValueError, match=match):
            codec.decode(wrong, frames)


def test_an_hour_at_once_is_refused(codec):
    longest = int(codec.longest * codec.sample_rate) + 1
    with pytest.raises(UserError, match="as a stream"):
        codec.encode(np.zeros((1, longest), np.float32), [longest])
    frames = int(codec.longest * codec.spec.clock) + 1
    with pytest.raises(UserError, match="as a stream"):
        codec.decode(np.zeros((1, frames, codec.spec.levels), np.int32), [frames])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_after_what_it_refused(name):
    codec = TINY_CODECS[name]()
    chunk = np.random.default_rng(0).normal(size=(1, samples(codec))).astype(np.float32)
    state = codec.init_state(1)
    codes, after = codec.encode_step(state, chunk)
    for wrong, error in (
        (np.full_like(chunk, np.nan), UserError),
        (chunk * 1e6, UserError),
        (np.zeros((2, chunk.shape[1]), np.float32), ValueError),
        (np.zeros(chunk.shape, np.int16), ValueError),
        (chunk[0], ValueError),
        (chunk[:, :0], ValueError),
        (chunk[:, :-1], ValueError),
    ):
        with pytest.raises(error):
            codec.encode_step(state, wrong)
    np.testing.assert_array_equal(codec.encode_step(state, chunk)[0], codes)
    written = np.asarray(codes)
    for wrong in (
        written + 32,
        written - 32,
        written.astype(float),
        written[0],
        written[:, :0],
        written[..., :0],
        np.repeat(written, 2, axis=0),
        np.repeat(written, 2, axis=2),
    ):
        with pytest.raises(ValueError, match="codes"):
            codec.decode_step(after, wrong)
    sound, _ = codec.decode_step(after, codes + 32)  # on the device: not looked into
    assert sound.shape == chunk.shape and np.isfinite(sound).all()


# --------------------------------------------------------------------------- units and TASTE


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def encoder(whisper):
    return UnitEncoder.load(whisper, 1, Window(3200, 640, 1600, 10))


@pytest.fixture(scope="module")
def vocoder():
    config = UnitVocoderConfig(
        units=UNITS,
        width=8,
        mlp=8,
        duration_layers=1,
        unit_layers=1,
        frame_layers=1,
        speaker_width=E,
        vocoder=VocoderConfig(width=8, mlp=8, layers=1),
    )
    return UnitVocoder(config, pure_params(UnitNetwork(config, rngs=nnx.Rngs(0)))[1])


@pytest.fixture(scope="module")
def taste(tmp_path_factory, whisper):
    return load_tiny_taste(tmp_path_factory.mktemp("taste"), whisper)


BAD_ROWS = {
    "stereo": (np.zeros((9, 2), np.float32), ValueError),
    "integers": (np.zeros(9, np.int16), ValueError),
    "NaN": (np.array([0, np.nan]), UserError),
    "integers as floats": (np.array([0.0, -32768.0]), UserError),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_recordings_that_nobody_meant_are_refused(name, encoder, vocoder, taste):
    audio, error = BAD_ROWS[name]
    stream = encoder.stream()
    hears = (encoder.features, vocoder.speaker, taste.vocode, lambda x: taste.encode([x], [[]]))
    for hear in (*hears, lambda x: (stream.push(x), stream.finish())):
        with pytest.raises(error):
            hear(audio)


@few
@given(st.data())
def test_units_are_made_of_every_sound(encoder, data):
    count = data.draw(st.sampled_from([0, 1, 319, 320, 3200, 5000]))
    features = encoder.features(data.draw(sounds(count)))
    assert features.shape == (-(-count // 320), 16) and np.isfinite(features).all()
    means = kmeans.KMeans(np.eye(4, 16, dtype=np.float32), encoder.source)
    [units] = encoder.units(means, [np.zeros(count, np.float32)])
    assert units.shape == (len(features),) and units.dtype == np.int32


@few
@given(st.data())
def test_a_unit_vocoder_speaks_every_unit(vocoder, data):
    units = np.array(data.draw(st.lists(st.integers(-1, UNITS - 1), min_size=5, max_size=5)))[None]
    durations = np.array(data.draw(st.lists(st.integers(0, 9), min_size=5, max_size=5)))[None]
    speaker = vocoder.speaker(data.draw(sounds(data.draw(st.sampled_from([0, 1, 9000])))))
    assert speaker.shape == (E,) and np.isfinite(speaker).all()
    spoken = vocoder.decode(units, durations, speaker[None])
    wanted = int(durations[units >= 0].sum()) * vocoder.config.samples
    assert spoken.samples.tolist() == [wanted] and spoken.audio.shape == (1, wanted)
    assert np.isfinite(spoken.audio).all()


def test_a_unit_vocoder_refuses_what_it_cannot_speak(vocoder):
    units, ones = np.zeros((1, 3), int), np.ones((1, 3), int)
    voice = np.eye(1, E, dtype=np.float32)
    for args, match in (
        ((units + UNITS, ones, voice), r"lie in \[0, 12\)"),
        ((units - 2, ones, voice), r"lie in \[0, 12\)"),
        ((units * 1.0, ones, voice), "wanted int"),
        ((units, -ones, voice), "negative"),
        ((units, ones[:, :2], voice), "durations"),
        ((units, ones, voice[:, :2]), "speakers"),
        ((units, ones, voice * np.nan), "speakers .* not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            vocoder.decode(*args)
    with pytest.raises(UserError, match="in parts"):
        vocoder.decode(units, ones * 10**9, voice)


@few
@given(st.data())
def test_taste_hears_every_sound_and_speaks_every_code(taste, data):
    count = data.draw(st.sampled_from([1, 100, 9000]))
    times = st.floats(-1, 3, allow_nan=False)
    spans = data.draw(st.lists(st.tuples(times, times).map(sorted), min_size=1, max_size=3))
    spoken = [Word("one", begin, end) for begin, end in spans]
    [codes], [speaker] = taste.encode([data.draw(sounds(count))], [spoken])
    assert codes.shape == (len(spoken), 2) and codes.dtype == np.int32
    assert (codes >= 0).all() and (codes < taste.spec.vocab).all() and np.isfinite(speaker).all()
    assert np.isfinite(taste.vocode(np.zeros(count, np.float32))).all()
    [audio], [placed] = taste.decode([[word.text for word in spoken]], [codes], [speaker])
    assert np.isfinite(audio).all() and np.abs(audio).max() <= 1 and len(placed) == len(spoken)


def test_taste_refuses_what_it_cannot_place_or_speak(taste):
    sound, voice, codes = np.zeros(900, np.float32), taste.default_speaker, np.zeros((1, 2), int)
    for word in (Word("a", 1.0, 0.5), Word("a", np.nan, 1.0), Word("a", 0.0, np.inf)):
        with pytest.raises(ValueError, match="'a' lasts"):
            taste.encode([sound], [[word]])
    for wrong, speakers, match in (
        (codes + 8, [voice], "vocabulary"),
        (codes - 1, [voice], "vocabulary"),
        (codes * 1.0, [voice], "shape"),
        (codes[0], [voice], "shape"),
        (codes, [voice[:2]], "speakers"),
        (codes, [voice * np.nan], "speakers"),
        (codes, [], "zip"),
    ):
        with pytest.raises(ValueError, match=match):
            taste.decode([["a"]], [wrong], speakers)


# -------------------------------------------------------------------------------- the checks


@settings(deadline=None, max_examples=300)
@given(anything(3), anything(2))
def test_what_passes_the_checks_is_what_they_promise(audio, lengths):
    try:
        check_rows(audio, lengths)
    except (UserError, ValueError):
        pass
    else:
        assert audio.ndim == 2 and audio.dtype.kind == "f" and lengths.shape == audio.shape[:1]
        for row, length in zip(audio, lengths, strict=True):
            assert 0 <= length <= len(row) and (np.abs(row[:length]) <= LOUDEST).all()
    try:
        heard = mono(audio)
    except (UserError, ValueError):
        pass
    else:
        assert heard.dtype == np.float32 and heard.shape == audio.shape
        assert (np.abs(heard) <= LOUDEST).all()


@settings(deadline=None, max_examples=300)
@given(anything(3), anything(1), st.lists(st.integers(1, 3), max_size=3))
def test_codes_that_pass_can_be_looked_up(codes, frames, vocab):
    try:
        check_codes(codes, frames, vocab)
    except ValueError:
        return
    batch, count, levels = codes.shape
    assert 1 <= levels <= len(vocab) and frames.shape == (batch,)
    for row, used in zip(codes, frames, strict=True):
        assert 0 <= used <= count
        assert ((row[:used] >= 0) & (row[:used] < vocab[:levels])).all()
