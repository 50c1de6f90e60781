"""Units of both kinds with tiny unit vocoders: rates, speakers, and whose vocoder is whose."""

import functools

import jax
import numpy as np
import pytest
from tiny_models import tiny_asr_units, tiny_unit_vocoder, tiny_units, tiny_whisper

from slm_jax.errors import UserError
from slm_jax.tokenizers.asr_units import AsrUnits
from slm_jax.tokenizers.spoken_units import SpokenUnits, fiftieths, load_units
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer
from slm_jax.tokenizers.unit_vocoder import spoken_by

RATE = 16_000


def audio(samples, seed=0):
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module", params=["k-means", "supervised"])
def units(request, whisper, tmp_path_factory):
    """Loaded from their folder, whose kind nobody names."""
    write = tiny_units if request.param == "k-means" else tiny_asr_units
    folder = write(tmp_path_factory.mktemp("units"), whisper)
    found = load_units(folder, str(whisper), lambda name: name)
    assert isinstance(found, UnitTokenizer if request.param == "k-means" else AsrUnits)
    return found


@pytest.fixture
def compiled_as_for_users(monkeypatch):
    """Not in haste, as the suite compiles: its programs round more, and here that adds up."""
    options = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))


@pytest.mark.usefixtures("compiled_as_for_users")
def test_a_vocoder_speaks_the_units_that_it_was_made_for(units, tmp_path):
    spec = units.spec
    tiny_unit_vocoder(spec.fingerprint, spec.vocab[0]).save(tmp_path / "own")
    tiny_unit_vocoder("others", spec.vocab[0]).save(tmp_path / "other")
    assert spoken_by(tmp_path / "own") == spec.fingerprint
    with pytest.raises(UserError, match="speaks the units others, not"):
        SpokenUnits.load(units, tmp_path / "other")
    with pytest.raises(UserError, match=r"no unit vocoder .*config\.json is missing"):
        spoken_by(tmp_path)
    spoken = SpokenUnits.load(units, tmp_path / "own")
    lengths = np.array([RATE // 2 + 40, RATE])
    rows = np.stack([audio(RATE), audio(RATE, 1)])
    codes, frames, speakers = spoken.encode(rows, lengths)
    np.testing.assert_array_equal(codes, units.encode(rows, lengths)[0])
    np.testing.assert_allclose(speakers * 127, np.rint(speakers * 127), atol=1e-4)
    sound = spoken.decode(codes, frames, speakers)
    hop = round(RATE / spec.clock)
    assert sound.shape == (2, max(frames) * hop) and np.isfinite(sound).all()
    assert sound[0, : frames[0] * hop].any() and not sound[0, frames[0] * hop :].any()
    alone = spoken.decode(codes[:1, : frames[0]], frames[:1], speakers[:1])
    # Rounding adds up in the phase of the pitch, and this vocoder is random.
    np.testing.assert_allclose(alone[0], sound[0, : alone.shape[1]], atol=0.02)


def test_every_fiftieth_of_a_second_has_its_unit(units):
    row = audio(RATE // 2 + 40)
    found = fiftieths(units, row)
    codes, _ = units.encode(row[None], np.array([len(row)]))
    assert found.shape == (26,)
    slower = round(50 / units.spec.clock)
    np.testing.assert_array_equal(found, codes[0, np.arange(26) // slower, 0])


def test_a_folder_without_units_is_named(tmp_path, whisper):
    with pytest.raises(UserError, match="does not exist"):
        load_units(tmp_path, str(whisper), lambda name: name)
