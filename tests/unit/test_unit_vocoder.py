"""The unit vocoder with random weights: rows do not know each other, runs are what they repeat."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from slm_jax.audio.features import MelConfig
from slm_jax.errors import UserError
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.flow_matching import FlowConfig
from slm_jax.tokenizers.unit_vocoder import (
    UnitNetwork,
    UnitVocoder,
    UnitVocoderConfig,
    analyse,
    analyse_one,
)
from slm_jax.tokenizers.units import deduplicate, repeat
from slm_jax.tokenizers.vocoder import VocoderConfig

UNITS, E, SAMPLES = 20, 4, 320
CONFIG = UnitVocoderConfig(
    kmeans="means",
    units=UNITS,
    width=16,
    mlp=24,
    duration_layers=1,
    unit_layers=1,
    frame_layers=1,
    speaker_width=E,
    flow=FlowConfig(width=16, mlp=24, layers=1, steps=3),
    vocoder=VocoderConfig(width=16, mlp=24, layers=1),
)


def random_params(config):
    """Random, with a vocoder that whispers: random filters are so loud that all is clipped."""
    params = jax.tree.map(np.array, pure_params(UnitNetwork(config, rngs=nnx.Rngs(0)))[1])
    params["vocoder"]["head"]["kernel"] *= 0.3
    params["vocoder"]["head"]["bias"] -= 3.0
    return params


@pytest.fixture(scope="module", params=["regression", "flow"])
def vocoder(request):
    config = dataclasses.replace(CONFIG, mels=request.param)
    return UnitVocoder(config, random_params(config))


@pytest.fixture(scope="module")
def regression():
    return UnitVocoder(CONFIG, random_params(CONFIG))


def voices(rows, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, E)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def frames(count, seed=0):
    """Units at 50 Hz that last a while each."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(0, UNITS, count), rng.integers(1, 6, count))[:count]


def padded(*rows):
    units = np.full((len(rows), max(map(len, rows))), -1)
    for row, some in zip(units, rows, strict=True):
        row[: len(some)] = some
    return units


def test_runs_say_what_their_repeats_say(vocoder):
    units = frames(30)
    runs = deduplicate(units)
    assert len(runs.units) < 30
    long = vocoder.decode(units[None], np.ones((1, 30), int), voices(1))
    short = vocoder.decode(runs.units[None], runs.durations[None], voices(1))
    assert long.samples == short.samples == 30 * SAMPLES
    assert long.audio.shape == (1, 30 * SAMPLES)
    np.testing.assert_array_equal(long.audio, short.audio)
    assert np.std(long.audio) > 1e-4


@pytest.mark.parametrize("count", [1, 3, 17, 49, 60])
def test_a_row_is_the_same_alone_and_in_a_batch(vocoder, count):
    rows = frames(count, 1), frames(70, 2)
    units, speakers = padded(*rows), voices(2)
    together = vocoder.decode(units, (units >= 0).astype(int), speakers)
    alone = vocoder.decode(rows[0][None], np.ones((1, count), int), speakers[:1])
    assert together.samples.tolist() == [count * SAMPLES, 70 * SAMPLES]
    assert alone.audio.shape == (1, count * SAMPLES)
    np.testing.assert_allclose(together.audio[0, : count * SAMPLES], alone.audio[0], atol=2e-3)
    assert (together.audio[0, count * SAMPLES :] == 0).all()


def test_predicted_durations_do_not_know_other_rows_and_fill_the_audio(vocoder):
    rows = deduplicate(frames(30, 3)).units, deduplicate(frames(90, 4)).units
    together = vocoder.decode(padded(*rows), None, voices(2))
    alone = vocoder.decode(rows[0][None], None, voices(2)[:1])
    assert together.samples[0] == alone.samples[0] >= len(rows[0]) * SAMPLES
    np.testing.assert_allclose(together.audio[0, : alone.samples[0]], alone.audio[0], atol=2e-3)


def test_predicted_durations_follow_the_network(regression):
    params = random_params(CONFIG)
    params["run_out"]["kernel"][:] = 0
    params["run_out"]["bias"][:] = np.log(2.5)
    runs = np.arange(8)[None]
    slow = UnitVocoder(CONFIG, params).decode(runs, None, voices(1))
    assert slow.samples == 20 * SAMPLES  # rounded on the running sum, not 8 * 2 or 8 * 3


def test_units_reach_the_mel_frames_of_their_time(regression):
    """Unit u of 20 ms is read by the frames of 16 ms whose middle lies in it, and by the stacks'
    neighbours."""
    network = merge(pure_params(UnitNetwork(CONFIG, rngs=nnx.Rngs(0)))[0], random_params(CONFIG))
    count, changed = 60, 32
    units = frames(count, 5)[None]
    others = units.copy()
    others[0, changed] = (others[0, changed] + 1) % UNITS
    lengths = np.array([count])
    states = [np.asarray(network.read(u, lengths, voices(1))[0]) for u in (units, others)]
    differ = np.flatnonzero(np.abs(states[0] - states[1]).max((0, 2)) > 1e-7)
    times = np.arange(76) * 0.016
    near, far = (changed - 3) * 0.02, (changed + 3 + 1) * 0.02  # three units of convolution
    inside = np.flatnonzero((times > near - 1e-6) & (times < far - 1e-6))
    assert (differ[0], differ[-1]) == (inside[0] - 3, inside[-1] + 3)
    assert states[0].shape[1] == CONFIG.mel_frames(count) == 76


@pytest.mark.parametrize(("units", "wanted"), [(1, 3), (4, 6), (5, 8), (100, 126)])
def test_mel_frames_surround_the_units(units, wanted):
    assert CONFIG.mel_frames(units) == wanted
    assert (wanted - 1) * CONFIG.vocoder.mel.hop >= units * SAMPLES


def test_speakers_are_heard_and_matter(vocoder):
    rate = vocoder.sample_rate
    time = np.arange(rate) / rate
    rng = np.random.default_rng(0)
    high, low = (
        sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6)) * 0.1
        + rng.normal(size=rate) * 1e-3
        for hertz in (220, 110)
    )
    speakers = np.stack([vocoder.speaker(high), vocoder.speaker(low)])
    np.testing.assert_allclose(np.linalg.norm(speakers, axis=1), 1, atol=1e-4)
    assert np.abs(speakers[0] - speakers[1]).max() > 0.01
    units = np.stack([frames(20)] * 2)
    audio = vocoder.decode(units, np.ones_like(units), speakers).audio
    assert np.abs(audio[0] - audio[1]).max() > 1e-4


def test_what_is_analysed_does_not_depend_on_silence_behind_it():
    mel = MelConfig(n_fft=512, n_mels=40)
    time = np.arange(8000) / 16_000
    audio = (0.1 * np.sign(np.sin(2 * np.pi * 150 * time))).astype(np.float32)
    heard = analyse_one(audio, mel)
    assert heard.mel.shape == (32, 40) and heard.voicing[4:-4].all()
    whole = analyse(audio[None], mel)
    np.testing.assert_allclose(heard.pitch[4:-4], whole.pitch[0, 4:-4], atol=1e-3)
    hertz = np.exp(0.5 * heard.pitch[15] + 5)
    assert hertz == pytest.approx(150, rel=0.01)


def test_it_is_saved_and_read(vocoder, tmp_path):
    vocoder.save(tmp_path)
    again = UnitVocoder.load(tmp_path, "means")
    assert again.config == vocoder.config
    units, ones = frames(20)[None], np.ones((1, 20), int)
    said = [one.decode(units, ones, voices(1)).audio for one in (vocoder, again)]
    assert np.corrcoef(said[0][0], said[1][0])[0, 1] > 0.9  # float16 between them
    again.save(tmp_path / "more")
    twice = UnitVocoder.load(tmp_path / "more", "means").decode(units, ones, voices(1))
    np.testing.assert_array_equal(said[1], twice.audio)


def test_bad_folders_and_other_units_are_named(regression, tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        UnitVocoder.load(tmp_path, "means")
    regression.save(tmp_path)
    with pytest.raises(UserError, match="units means, not others"):
        UnitVocoder.load(tmp_path, "others")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"units": UNITS + 1}))
    with pytest.raises(UserError, match="table/embedding"):
        UnitVocoder.load(tmp_path, "means")
    (tmp_path / "config.json").write_text(json.dumps(config | {"wide": 1}))
    with pytest.raises(UserError, match="not the configuration"):
        UnitVocoder.load(tmp_path, "means")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        UnitVocoder.load(tmp_path, "means")


def test_what_does_not_fit_is_refused(regression):
    units, ones = frames(5)[None], np.ones((1, 5), int)
    with pytest.raises(ValueError, match=r"speakers are .* wanted float"):
        regression.decode(units, ones, voices(2))
    with pytest.raises(ValueError, match="wanted int"):
        regression.decode(units[0], ones, voices(1))
    with pytest.raises(ValueError, match=r"units lie in \[0, 20\)"):
        regression.decode(units * 0 + UNITS, ones, voices(1))
    with pytest.raises(ValueError, match="durations"):
        regression.decode(units, ones[:, :4], voices(1))
    with pytest.raises(ValueError, match="negative"):
        regression.decode(units, -ones, voices(1))
    for changes in ({"mels": "drawn"}, {"units": 0}, {"width": 0}):
        with pytest.raises(ValueError):
            dataclasses.replace(CONFIG, **changes)


def test_a_row_without_units_is_silent(regression):
    units = padded(frames(10), [])
    said = regression.decode(units, (units >= 0).astype(int), voices(2))
    assert said.samples.tolist() == [10 * SAMPLES, 0] and (said.audio[1] == 0).all()
    assert (repeat(units[0], np.ones(10, int)) == units[0]).all()
    assert regression.decode(units[1:], None, voices(1)).audio.shape == (1, 0)
