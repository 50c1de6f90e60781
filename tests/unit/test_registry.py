from fractions import Fraction

import pytest

from slm_jax import config
from slm_jax.data import registry, schema
from slm_jax.data.dataset import write_dataset
from slm_jax.data.registry import DatasetSpec, MixtureSpec
from slm_jax.errors import UserError


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="unknown dataset 'promts'") as error:
        registry.get("promts")
    assert "did you mean prompts?" in error.value.remedy
    with pytest.raises(UserError, match="unknown dataset or mixture") as error:
        registry.get_mixture("prompts_and_txt")
    assert "did you mean prompts_and_text?" in error.value.remedy


def test_mixtures_by_name():
    assert registry.get_mixture("text") == MixtureSpec((("text", 1.0),))
    mixture = registry.get_mixture("prompts_and_text")
    assert [spec.name for spec in mixture.datasets] == ["prompts", "text"]
    assert mixture.rates == (Fraction(9, 10), Fraction(1, 10))
    assert MixtureSpec((("a", 3.0), ("b", 1.0))).rates == (Fraction(3, 4), Fraction(1, 4))


@pytest.mark.parametrize(
    "parts",
    [(), (("a", 0.0),), (("a", -1.0),), (("a", float("nan")),), (("a", 1.0), ("a", 2.0))],
)
def test_senseless_mixtures(parts):
    with pytest.raises(ValueError, match="parts"):
        MixtureSpec(parts)


def test_a_name_means_one_thing():
    spec = registry.get("prompts")
    registry.register("prompts", spec)
    with pytest.raises(ValueError, match="'prompts' is registered already"):
        registry.register("prompts", DatasetSpec("prompts", "elsewhere", ("words",)))
    assert registry.registered()["prompts"] == spec


def test_a_folder_is_a_dataset(tmp_path):
    specs = [schema.words_spec()]
    write_dataset(tmp_path / "toy", "toy", specs, {"train": []}, command="make toy")
    spec = registry.get(str(tmp_path / "toy"))
    assert (spec.root, spec.families, spec.command) == (tmp_path / "toy", ("words",), "make toy")
    assert registry.get_mixture(str(tmp_path / "toy")).datasets == (spec,)
    with pytest.raises(UserError, match="not a complete dataset"):
        registry.get_mixture(str(tmp_path / "nowhere"))


def test_what_the_pipelines_built_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="unknown dataset 'mine'"):
        registry.get("mine")
    specs = [schema.words_spec(), schema.audio_spec()]
    write_dataset(tmp_path / "datasets" / "mine", "mine", specs, {"train": []})
    assert registry.get("mine").families == ("words", "audio")
    assert not registry.get("mine").text_only
    assert registry.get("text").text_only


def test_what_is_missing_comes_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no manifest\.json") as error:
        registry.get("prompts").open()
    assert error.value.remedy == "run: python -m data_pipelines.build prompts"
    write_dataset(tmp_path / "datasets" / "prompts", "p", [schema.words_spec()], {"train": []})
    registry.get("prompts").open()
    with pytest.raises(UserError, match="no family 'taste', only words") as error:
        registry.get("prompts").open(["words", "taste"])
    assert error.value.remedy == "run: python -m data_pipelines.build prompts"


def test_gin_files_of_data_change_the_mixture():
    own = ["CORPUS=ljspeech", "CORPUS_PATH=/data/LJSpeech-1.1", "DATASET=lj"]
    job = config.load(["taste_pretrain.gin", "data/corpus.gin"], own)
    assert job.data == MixtureSpec((("lj", 0.9), ("text", 0.1)))
    speech, text = job.sources
    assert (speech.name, speech.corpus, speech.path) == ("lj", "ljspeech", "/data/LJSpeech-1.1")
    assert text.name == "text"
    job = config.load(["taste_pretrain.gin", "data/speech_only.gin"])
    assert job.data == MixtureSpec((("prompts", 1.0),))
    assert [source.name for source in job.sources] == ["prompts"]
