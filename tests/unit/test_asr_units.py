"""Units in a tiny random Whisper: audio alone decides, gradients pass, files fit their Whisper."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import ASR_UNITS as CONFIG
from tiny_models import start_asr_units, tiny_asr_units, tiny_whisper

from slm_jax.errors import UserError
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.asr_units import AsrUnits, save_asr_units
from slm_jax.tokenizers.asr_units_network import (
    AsrUnitsConfig,
    AsrUnitsNetwork,
    whisper_weights,
)
from slm_jax.tokenizers.whisper import Whisper

RATE = 16_000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def folder(whisper, tmp_path_factory):
    return tiny_asr_units(tmp_path_factory.mktemp("units"), whisper)


@pytest.fixture(scope="module")
def units(whisper, folder):
    return AsrUnits.load(whisper, folder)


def audio(samples, seed=0):
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


def test_what_it_says_of_itself(units):
    spec = units.spec
    assert spec.clock == 12.5 and spec.vocab == (27,) and spec.lookahead == 13.92
    codes, frames = units.encode(audio(RATE)[None], np.array([RATE]))
    assert codes.shape == (1, 13, 1) and codes.dtype == np.int32 and frames.tolist() == [13]
    assert len(np.unique(codes)) > 1 and codes.min() >= 0 and codes.max() < 27


def test_a_row_is_the_same_alone_and_in_a_batch(units):
    lengths = np.array([RATE // 2 + 7, 5 * RATE, 0, 1])
    rows = np.full((4, 5 * RATE), np.nan, np.float32)  # wherever it is heard, it wins
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = audio(length, int(length))
    codes, frames = units.encode(rows, lengths)
    assert frames.tolist() == [7, 63, 0, 1] and (codes[0, 7:] == 0).all()
    for row, length, count, code in zip(rows, lengths, frames, codes, strict=True):
        alone, _ = units.encode(row[None, :length], [length])
        np.testing.assert_array_equal(alone[0], code[:count])


def test_a_stream_gives_what_the_whole_recording_gives(units):
    row = audio(17 * RATE)
    whole, frames = units.encode(row[None], [len(row)])
    stream, found = units.stream(), []
    for chunk in np.split(row, [RATE, 15 * RATE]):
        found += stream.push(chunk)
    assert len(found) == 1 and frames.tolist() == [213]
    np.testing.assert_array_equal(np.concatenate(found + stream.finish()), whole[0])
    late = row.copy()
    late[14 * RATE :] = 0.3
    changed, _ = units.encode(late[None], [len(late)])
    np.testing.assert_array_equal(changed[0, :150], whole[0, :150])
    assert (changed[0, 150:] != whole[0, 150:]).any()


def test_gradients_pass_the_rounding(whisper):
    loaded = Whisper.load(whisper)
    network = AsrUnitsNetwork(CONFIG, loaded.config, rngs=nnx.Rngs(0))
    graphdef, params = pure_params(network)
    sound = jnp.asarray(audio(4 * RATE))[None]

    def heard(down):
        whole = nnx.merge(graphdef, params | {"down": down})
        q = whole.quantise(sound)
        return jnp.sum(whole.hear(q.latents, jnp.array([40]))[:, :160] ** 3)

    grads = jax.grad(heard)(params["down"])
    assert grads["kernel"].shape == (16, 3) and np.abs(grads["kernel"]).min() > 0


def test_codes_are_all_that_is_read(units):
    """What is heard is told by the codes of a row alone, and positions by nothing else."""
    codes, frames = units.encode(audio(2 * RATE)[None], [2 * RATE])
    wide = np.concatenate([codes, np.ones_like(codes)], axis=1)
    assert units.read(wide, frames) == units.read(codes, frames)
    same = units._hear(units._params, codes[:, :20], np.array([20]))
    other = units._hear(units._params, (codes[:, :20] + 1) % 27, np.array([20]))
    assert same.shape == (1, 80, 16) and np.abs(same - other).max() > 1e-3


def test_what_cannot_be_read_is_named(units):
    with pytest.raises(UserError, match="row 0 has samples that are not finite"):
        units.encode(np.full((1, 400), np.inf), [400])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        units.read(np.full((1, 4, 1), 27), [4])
    with pytest.raises(UserError, match=r"40\.0 s of audio, a Whisper hears 29 s"):
        units.read(np.zeros((1, 500, 1), int), [500])
    with pytest.raises(UserError, match="English only"):
        units.read(np.zeros((1, 4, 1), int), [4], "fr")


def test_files_fit_one_whisper(whisper, folder, units, tmp_path):
    again = AsrUnits.load(whisper, folder)
    assert again.spec == units.spec
    row = audio(RATE)[None]
    np.testing.assert_array_equal(again.encode(row, [RATE])[0], units.encode(row, [RATE])[0])
    config, trained = start_asr_units(whisper)
    with pytest.raises(UserError, match="other weights"):
        save_asr_units(tmp_path, dataclasses.replace(config, whisper="another"), trained)
        AsrUnits.load(whisper, tmp_path)
    lacking = {name: x for name, x in trained.items() if name != "norm/scale"}
    with pytest.raises(UserError, match="missing: norm/scale"):
        save_asr_units(tmp_path, config, lacking)
        AsrUnits.load(whisper, tmp_path)
    moved = trained | {"down/bias": trained["down/bias"] + 1}
    save_asr_units(tmp_path, config, moved)
    assert AsrUnits.load(whisper, tmp_path).spec.fingerprint != units.spec.fingerprint
    (tmp_path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        AsrUnits.load(whisper, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"layer": 1}))
    with pytest.raises(UserError, match="not the configuration"):
        AsrUnits.load(whisper, tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        AsrUnits.load(whisper, tmp_path / "nothing")


def test_codes_lie_within_the_encoder(whisper):
    with pytest.raises(UserError, match="2 encoder layers, codes after 2"):
        whisper_weights(dataclasses.replace(CONFIG, layer=2), Whisper.load(whisper))
    with pytest.raises(ValueError, match="divide 100"):
        AsrUnitsConfig(pool=3)
    with pytest.raises(ValueError, match="layer must be positive"):
        AsrUnitsConfig(layer=0)
