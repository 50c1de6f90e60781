"""Every kind of speech tokenizer keeps the promises of `Tokenizer`, with tiny random models."""

import numpy as np
import pytest
from tiny_codecs import TINY_CODECS
from tiny_models import load_tiny_taste, tiny_unit_vocoder, tiny_whisper

from slm_jax.errors import UserError
from slm_jax.streams import WORD, StreamSpec
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.chunked import Window
from slm_jax.tokenizers.codecs.kinds import CODECS
from slm_jax.tokenizers.spoken_units import SpokenUnits
from slm_jax.tokenizers.taste_tokenizer import TasteTokenizer
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer, save_units, units_fingerprint

RATE, UNITS = 16_000, 12
WINDOW = Window(3200, 640, 1600, 10)  # 0.2 s between 40 and 100 ms


def audio(samples, seed=0):
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def encoder(whisper):
    return UnitEncoder.load(whisper, 1, WINDOW)


@pytest.fixture(scope="module")
def means(encoder):
    return kmeans.fit(encoder.features(audio(RATE)), UNITS, 0, source=encoder.source)


@pytest.fixture(scope="module")
def make(whisper, encoder, means, tmp_path_factory):
    def build(kind):
        if kind == "taste":
            return TasteTokenizer(
                load_tiny_taste(tmp_path_factory.mktemp("taste"), whisper), Asr(whisper, 2)
            )
        if kind != "units":
            return TINY_CODECS[kind]()
        vocoder = tiny_unit_vocoder(means.fingerprint, UNITS)
        return SpokenUnits(UnitTokenizer(encoder, means), vocoder)

    return build


def test_every_kind_of_codec_is_among_them():
    assert set(CODECS) <= set(TINY_CODECS)


@pytest.mark.parametrize("kind", [*CODECS, "units", "taste"])
def test_codes_and_audio_are_as_the_interface_says(make, kind):
    tokenizer = make(kind)
    spec, rate = tokenizer.spec, tokenizer.sample_rate
    assert spec.kind == "codes" and spec.bits == pytest.approx(np.log2(spec.vocab).sum())
    assert spec.fingerprint and spec.lookahead >= 0 and tokenizer.delay >= 0
    lengths = [min(rate, 9000), min(rate, 9000) // 3]
    batch = np.stack([audio(lengths[0]), audio(lengths[0], 1)])
    encoded = tokenizer.encode(batch, np.array(lengths))
    codes, frames = np.asarray(encoded[0]), np.asarray(encoded[1])
    assert codes.dtype == np.int32 and codes.shape[::2] == (2, spec.levels)
    assert (codes >= 0).all() and (codes < np.array(spec.vocab)).all()
    for row in range(2):
        assert not codes[row, frames[row] :].any()
        if spec.clock != WORD:
            assert abs(frames[row] - lengths[row] / rate * spec.clock) <= spec.clock * 0.1 + 1.5
        alone = tokenizer.encode(batch[row : row + 1], np.array(lengths[row : row + 1]))
        np.testing.assert_array_equal(alone[0][0, : frames[row]], codes[row, : frames[row]])
    sound = np.asarray(tokenizer.decode(*encoded))
    assert sound.dtype == np.float32 and sound.shape[0] == 2 and np.isfinite(sound).all()
    if spec.clock != WORD:
        assert (np.asarray(sound[1])[lengths[1] + rate // 4 :] == 0).all()


def test_taste_sends_words_and_speaker_along(make):
    tokenizer = make("taste")
    batch = np.stack([audio(RATE), np.zeros(RATE, np.float32)])
    codes, frames, speakers, words = tokenizer.encode(batch, np.array([RATE, RATE]))
    assert [len(spoken) for spoken in words] == frames.tolist()
    assert speakers.shape == (2, 4)
    nothing = tokenizer.decode(codes, frames, speakers, [[], []])
    assert nothing.shape == (2, 0)


@pytest.mark.parametrize("cuts", [(), (100,), (1, 3199, 3201, 9999), tuple(range(0, 16000, 777))])
def test_a_stream_of_units_gives_the_units_of_the_whole(encoder, means, cuts):
    row = audio(RATE + 1111)
    [whole] = encoder.units(means, [row])
    stream = encoder.stream()
    parts = [out for part in np.split(row, cuts) for out in stream.push(part)]
    found = means.assign(np.concatenate(parts + stream.finish()))
    np.testing.assert_array_equal(found, whole)
    assert len(whole) == -(-len(row) // 320) and len(set(whole.tolist())) > 3


def test_a_unit_hears_no_further_than_it_says(encoder):
    row = audio(RATE)
    for frame in (0, 9, 10, 25):
        heard = (frame + 1) * 320 + round(encoder.lookahead * RATE)
        changed = np.concatenate([row[:heard], audio(RATE - heard, 1)])
        one, two = encoder.features(row), encoder.features(changed)
        np.testing.assert_array_equal(one[: frame + 1], two[: frame + 1])
    changed = np.concatenate([row[:4799], [1.0], row[4800:]]).astype(np.float32)
    assert encoder.lookahead == pytest.approx((3200 + 1600 - 320) / RATE)
    assert (encoder.features(changed)[0] != encoder.features(row)[0]).any()


def test_windows_are_whole_frames_and_part_of_the_source(whisper, encoder):
    with pytest.raises(ValueError, match="whole frames"):
        UnitEncoder.load(whisper, 1, Window(3200, 600, 1600, 10))
    with pytest.raises(ValueError, match="hears 30 s"):
        UnitEncoder.load(whisper, 1, Window(30 * RATE, 0, 320, 1500))
    assert UnitEncoder.load(whisper, 1).source != encoder.source


def test_a_saved_tokenizer_is_bound_to_its_encoder(whisper, tmp_path):
    encoder = UnitEncoder.load(whisper, 1)
    means = kmeans.fit(encoder.features(audio(RATE)), UNITS, 0, source=encoder.source)
    save_units(tmp_path, means, str(whisper), 1)
    loaded = UnitTokenizer.load(tmp_path)
    assert loaded.spec == StreamSpec(
        "units", "codes", 50.0, (UNITS,), fingerprint=means.fingerprint, lookahead=6.98
    )
    assert units_fingerprint(tmp_path) == means.fingerprint
    save_units(tmp_path, means, str(whisper), 2)
    with pytest.raises(UserError, match="fitted on another encoder"):
        UnitTokenizer.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        UnitTokenizer.load(tmp_path / "nothing")
