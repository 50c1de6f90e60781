import json
import shlex
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data_pipelines import build, report, tokens
from data_pipelines.build_config import DatasetBuildConfig, TextBuildConfig
from slm_jax.data import schema
from slm_jax.data.dataset import open_dataset
from slm_jax.data.split import split_of
from slm_jax.errors import UserError
from slm_jax.tokenizers.text import TextTokenizer


def write_tokenizer(folder, merges=()):
    """A byte-level BPE with one id a byte, an end token and a few merges."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(alphabet)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    made = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


@pytest.fixture
def text_config(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    paragraphs = [f"This is paragraph number {i}, and it says {i * i}." for i in range(60)]
    (tmp_path / "notes.txt").write_text("\n\n".join(paragraphs))
    return TextBuildConfig(
        name="notes",
        path=str(tmp_path / "notes.txt"),
        text_tokenizer=str(write_tokenizer(tmp_path / "llm")),
        licence="CC0",
        families=("text-bytes",),
        records_per_shard=20,
    )


def test_a_text_dataset(text_config, tmp_path):
    assert build.missing_parts(text_config) == ["words", "text-bytes"]
    root = build.ensure_dataset(text_config)
    assert root == tmp_path / "cache" / "datasets" / "notes"
    assert build.missing_parts(text_config) == []
    held = open_dataset(root)
    assert held.manifest.licences == ("CC0",)
    assert len(held.manifest.splits["train"]) == 3
    tokenizer = TextTokenizer.load(text_config.text_tokenizer)
    seen = set()
    for split in held.manifest.splits:
        for record in held.split(split, ["words", "text-bytes"]):
            words, ids = record["words"], record["text-bytes"]
            assert words.duration == 0 and split_of(words.text) == split
            assert tokenizer.decode(ids.values[:, 0]) == words.text
            first = ids.values[ids.index == 1, 0]
            assert tokenizer.decode(first) == " is"
            seen.add(words.text)
    assert len(seen) == 60
    assert report.read(root)["splits"]["train"]["utterances"] == sum(held.manifest.splits["train"])


def test_a_complete_dataset_is_not_touched(text_config, tmp_path):
    root = build.ensure_dataset(text_config)
    (tmp_path / "notes.txt").unlink()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert build.ensure_dataset(text_config) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_a_new_tokenizer_adds_files_and_rewrites_none(text_config, tmp_path):
    root = build.ensure_dataset(text_config)
    before = {p: p.stat().st_mtime_ns for p in root.glob("*/*.arrayrecord")}
    other = write_tokenizer(tmp_path / "other", [("t", "h"), ("Ġ", "i")])
    more = TextBuildConfig(
        **vars(text_config)
        | {"families": ("text-bytes", "text-pairs"), "text_tokenizer": str(other)}
    )
    assert build.missing_parts(more) == ["text-pairs"]
    build.ensure_dataset(more)
    assert "text-pairs" in open_dataset(root).manifest.command
    after = {p: p.stat().st_mtime_ns for p in root.glob("*/*.arrayrecord")}
    assert before.items() < after.items()
    records = open_dataset(root).split("train", ["words", "text-bytes", "text-pairs"])
    assert len(records[0]["text-pairs"].values) < len(records[0]["text-bytes"].values)


def test_a_damaged_shard_is_made_again_alone(text_config):
    root = build.ensure_dataset(text_config)
    bytes_of = {p.name: p.read_bytes() for p in (root / "text-bytes").glob("train*")}
    name = sorted(bytes_of)[1]
    (root / "text-bytes" / name).unlink()
    (root / "manifest.json").write_text(
        json.dumps(_without(json.loads((root / "manifest.json").read_text()), "text-bytes"))
    )
    untouched = (root / "text-bytes" / sorted(bytes_of)[0]).stat().st_mtime_ns
    build.ensure_dataset(text_config)
    assert (root / "text-bytes" / name).read_bytes() == bytes_of[name]
    assert (root / "text-bytes" / sorted(bytes_of)[0]).stat().st_mtime_ns == untouched


def _without(manifest, family):
    del manifest["families"][family]
    return manifest


def test_shards_of_an_interrupted_other_tokenizer_are_not_mixed_in(text_config, tmp_path):
    root = build.ensure_dataset(text_config)
    (root / "manifest.json").write_text(
        json.dumps(_without(json.loads((root / "manifest.json").read_text()), "text-bytes"))
    )
    other = write_tokenizer(tmp_path / "other", [("t", "h"), ("i", "s")])
    build.ensure_dataset(TextBuildConfig(**vars(text_config) | {"text_tokenizer": str(other)}))
    tokenizer = TextTokenizer.load(other)
    for record in open_dataset(root).split("train", ["words", "text-bytes"]):
        again = tokens.text_item(record["words"], tokenizer)
        np.testing.assert_array_equal(record["text-bytes"].values, again.values)


def test_another_configuration_for_the_same_folder_is_refused(text_config, tmp_path):
    build.ensure_dataset(text_config)
    with pytest.raises(UserError, match=r"max_words = 64, now it is 8"):
        build.ensure_dataset(TextBuildConfig(**vars(text_config) | {"max_words": 8}))


def test_a_corpus_that_changed_under_an_unfinished_build_is_refused(text_config, tmp_path):
    root = build.ensure_dataset(text_config)
    (root / "manifest.json").unlink()
    (tmp_path / "notes.txt").write_text("Something else is written here now, and it is long.")
    with pytest.raises(UserError, match="has changed"):
        build.ensure_dataset(text_config)


def test_nothing_is_left_of_a_build_whose_tokenizer_is_missing(text_config, tmp_path):
    shutil.rmtree(text_config.text_tokenizer)
    with pytest.raises(UserError, match="neither a path nor an asset"):
        build.ensure_dataset(text_config)
    assert build.missing_parts(text_config) == ["text-bytes"]
    write_tokenizer(tmp_path / "llm")
    build.ensure_dataset(text_config)
    assert build.missing_parts(text_config) == []


def test_character_languages_have_no_space_before_a_word(tmp_path):
    tokenizer = TextTokenizer.load(write_tokenizer(tmp_path))
    words = tuple(schema.Word(w, 0.0, 0.0) for w in "你好")
    item = tokens.text_item(schema.Utterance("a", words, "zh", "", 0.0, "test", "你好"), tokenizer)
    assert tokenizer.decode(item.values[:, 0]) == "你好"
    np.testing.assert_array_equal(item.index, [0] * 3 + [1] * 3)


CONFIGS = [
    DatasetBuildConfig(),
    DatasetBuildConfig(name="mine", corpus="folder", path="my recordings", workers=3, wer=True),
    DatasetBuildConfig(name="fr", language="fr", families=("taste", "speaker")),
    TextBuildConfig(),
    TextBuildConfig(name="notes", path="a/b.txt", max_words=9),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_builds_what_the_configuration_says(config):
    command = shlex.split(build.command(config))
    assert command[:3] == ["python", "-m", "data_pipelines.build"]
    assert build.parse(command[3:]) == config


def test_default_commands_are_short():
    assert build.command(DatasetBuildConfig()) == "python -m data_pipelines.build prompts"
    assert build.command(TextBuildConfig()) == "python -m data_pipelines.build text"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "a/b"}, "name"),
        ({"max_seconds": 31.0}, "max_seconds"),
        ({"min_seconds": 0.0}, "min_seconds"),
        ({"corpus": "folder"}, "path"),
        ({"families": ("tast",)}, "families"),
        ({"workers": -1}, "workers"),
        ({"records_per_shard": 0}, "records_per_shard"),
    ],
)
def test_configurations_that_make_no_sense_name_the_field(changes, named):
    with pytest.raises(ValueError, match=named):
        DatasetBuildConfig(**changes)


def test_a_mistyped_choice_is_refused_before_anything_happens(capsys):
    with pytest.raises(SystemExit):
        build.parse(["x", "--corpus", "foldr", "--path", "."])
    assert "folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="max_seconds"):
        build.parse(["x", "--max_seconds", "99"])


def test_a_missing_corpus_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    asr = tmp_path / "asr"
    asr.mkdir()
    config = DatasetBuildConfig(
        name="x", corpus="librispeech", path=str(tmp_path / "nowhere"), asr=str(asr)
    )
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        build.ensure_dataset(config)
