"""seqio brings TensorFlow, which must not enter this process: each test is a script of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from slm_jax.data import schema
from slm_jax.data.dataset import open_dataset, write_dataset
from slm_jax.data.schema import StreamItem, Utterance, Word
from slm_jax.data.split import split_of
from slm_jax.streams import StreamSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("seqio") is None, reason="needs the extra [seqio]"),
]

TEXT = StreamSpec("text-smollm2", "codes", "word", (50,), fingerprint="bpe")
TASTE = StreamSpec("taste", "codes", "word", (8, 4), fingerprint="starter")


def record(i, speech):
    rng = np.random.default_rng(i)
    count = 1 + i % 4
    words = tuple(Word(f"w{w}", w, w + 1) for w in range(count))
    ids = rng.integers(0, 50, (2 * count, 1)).astype(np.int32)
    made = {
        "words": Utterance(f"u{i}", words, "en", "", count, "toy", f"text {i}"),
        "text-smollm2": StreamItem(f"u{i}", ids, np.repeat(np.arange(count), 2)),
    }
    if speech:
        made["taste"] = StreamItem(f"u{i}", rng.integers(0, 4, (count, 2)).astype(np.int32))
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    for name, speech in (("prompts", True), ("text", False)):
        made = [record(i + 100 * (not speech), speech) for i in range(30)]
        specs = [schema.words_spec(), TEXT, *([TASTE] if speech else [])]
        splits = {"train": made, "validation": made[:3], "test": []}
        write_dataset(cache / "datasets" / name, name, specs, splits, records_per_shard=10)
    return cache


def run(cache, script, *arguments):
    """Runs a script that prints one line of JSON; it gets arguments in sys.argv."""
    env = os.environ | {"SLM_JAX_CACHE": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"}
    env["PYTHONPATH"] = str(cache)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


PROJECTION = """
import contextlib, io, json, sys, numpy as np, seqio, data_pipelines.tasks as tasks
out = {"names": sorted(list(seqio.TaskRegistry.names()) + list(seqio.MixtureRegistry.names()))}
task = seqio.get_mixture_or_task("prompts_taste")
raw = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
out["raw"] = [{k: (v.decode() if k == "text" else v.tolist()) for k, v in e.items()} for e in raw]
codes = [tasks.restore(e["targets"][:-1], (8, 4)).tolist() for e in raw]
out["codes"] = codes
out["splits"] = list(task.splits)
sys.argv = ["tasks", "list"]
with contextlib.redirect_stdout(io.StringIO()) as listed:
    tasks._main()
out["listed"] = listed.getvalue()
out["size"] = task.output_features["targets"].vocabulary.vocab_size
def texts(**options):
    data = task.get_dataset(None, "train", shuffle=True, **options)
    return [e["text"].decode() for e in data.as_numpy_iterator()]
out["seeded"] = [texts(seed=1), texts(seed=1), texts(seed=2)]
out["halves"] = [texts(seed=1, shard_info=seqio.ShardInfo(i, 2)) for i in range(2)]
# What a trainer does: pad, pack, batch, and weigh the loss.
both = {"inputs": 12, "targets": 16}
batches = seqio.get_dataset("prompts_taste", both, seqio.EncDecFeatureConverter(pack=False),
                            "train", shuffle=False)
out["encdec"] = {k: v.tolist() for k, v in next(batches.as_numpy_iterator()).items()}
lm = seqio.get_dataset("prompts_text_smollm2", {"targets": 40}, seqio.LMFeatureConverter(pack=True),
                       "train", shuffle=False)
out["lm"] = [{k: v.tolist() for k, v in e.items()} for e in lm.as_numpy_iterator()]
mixed = seqio.get_dataset("prompts_and_text_text_smollm2", {"targets": 10},
                          seqio.LMFeatureConverter(pack=False), "train", seed=3, num_epochs=None)
speech = {tuple(e["targets"][:9].tolist()) for e in seqio.get_mixture_or_task(
    "prompts_text_smollm2").get_dataset(None, "train", shuffle=False).as_numpy_iterator()}
seen = [tuple(np.trim_zeros(e["decoder_target_tokens"])[:9].tolist())
        for e in mixed.take(400).as_numpy_iterator()]
out["speech_rate"] = float(np.mean([s in speech for s in seen]))
print(json.dumps(out))
"""


def test_a_plain_seqio_user_trains_on_our_shards(cache):
    out = run(cache, PROJECTION)
    records = [record(i, True) for i in range(30)]
    assert out["names"] == [
        "prompts_and_text_text_smollm2",
        "prompts_taste",
        "prompts_text_smollm2",
        "text_text_smollm2",
    ]
    assert out["splits"] == ["train", "validation"]
    assert "task prompts_taste: vocabulary of {'inputs': 52, 'targets': 14}" in out["listed"]
    assert out["size"] == 2 + 8 + 4
    for example, made in zip(out["raw"], records, strict=True):
        assert example["text"] == made["words"].text
        assert example["inputs"] == [*(made["text-smollm2"].values.ravel() + 2).tolist(), 1]
        coarse, fine = made["taste"].values.T
        assert example["targets"][:-1:2] == (coarse + 2).tolist()
        assert example["targets"][1:-1:2] == (fine + 10).tolist()
        assert example["targets"][-1] == 1
    assert out["codes"] == [made["taste"].values.tolist() for made in records]

    everything = sorted(made["words"].text for made in records)
    one, again, other = out["seeded"]
    assert one == again != other
    assert sorted(one) == sorted(other) == everything
    assert sorted(out["halves"][0] + out["halves"][1]) == everything

    ids = out["raw"][0]["targets"]
    encdec = out["encdec"]
    assert encdec["decoder_target_tokens"][: len(ids)] == ids
    assert encdec["decoder_loss_weights"] == [1] * len(ids) + [0] * (16 - len(ids))
    assert encdec["encoder_input_tokens"][: len(out["raw"][0]["inputs"])] == out["raw"][0]["inputs"]

    packed = [id for row in out["lm"] for id in row["decoder_target_tokens"] if id]
    whole = [id for made in records for id in [*(made["text-smollm2"].values.ravel() + 2), 1]]
    assert sorted(packed) == sorted(whole)
    assert sum(sum(row["decoder_loss_weights"]) for row in out["lm"]) == len(whole)
    assert max(max(row["decoder_segment_ids"]) for row in out["lm"]) > 1

    assert out["speech_rate"] == pytest.approx(0.9, abs=0.06)


FOREIGN = """
import functools
import seqio
import tensorflow as tf

TEXTS = ["One sentence here. " * 3 + f"And story number {i} ends." for i in range(60)]

def source(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({"inputs": ["Tell me:"] * 60, "targets": TEXTS})

for name, steps in (("stories", [seqio.preprocessors.tokenize]), ("bytes", [])):
    if name == "bytes":
        def steps_fn(ds):
            return ds.map(lambda e: {"targets": tf.cast(tf.strings.bytes_split(e["targets"]) == "x",
                                                        tf.int32)})
        steps, vocabulary = [steps_fn], seqio.PassThroughVocabulary(2)
        features = {"targets": seqio.Feature(vocabulary)}
    else:
        vocabulary = seqio.ByteVocabulary()
        features = {k: seqio.Feature(vocabulary) for k in ("inputs", "targets")}
    seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(source, ["train"]),
                           preprocessors=steps, output_features=features)
"""

MATERIALISE = """
import json, sys
from pathlib import Path
import foreign
from data_pipelines import tasks
from slm_jax.data import shards
from slm_jax.errors import UserError
out = Path(sys.argv[1])
written = []
write = shards.write_shard
def crash_after_two(path, items):
    if len(written) == 2:
        raise KeyboardInterrupt
    written.append(path.name)
    return write(path, items)
shards.write_shard = crash_after_two
options = dict(max_words=12, records_per_shard=40, licence="CC0-1.0", command="make stories")
try:
    tasks.materialise("stories", out, **options)
except KeyboardInterrupt:
    pass
complete = (out / "manifest.json").exists()
first, written = written, []
def record(path, items):
    written.append(path.name)
    return write(path, items)
shards.write_shard = record
made = tasks.materialise("stories", out, **options)
rest, written = list(written), []
again = tasks.materialise("stories", out, **options)
errors = []
for task, splits, where in (("storys", ["train"], out), ("stories", ["dev"], out),
                            ("bytes", ["train"], out / "x"), ("bytes", ["train"], out)):
    try:
        tasks.materialise(task, where, splits=splits)
    except UserError as error:
        errors.append(str(error))
print(json.dumps({"complete": complete, "first": first, "rest": rest, "again": made == again,
                  "written_again": written, "errors": errors}))
"""


def test_a_foreign_task_becomes_a_dataset(cache, tmp_path):
    (cache / "foreign.py").write_text(FOREIGN)
    out = run(cache, MATERIALISE, tmp_path / "stories")
    assert not out["complete"]
    assert len(out["first"]) == 2 and not set(out["first"]) & set(out["rest"])
    assert out["again"] and not out["written_again"]
    messages = ("did you mean stories", "no split 'dev'", "not text", "holds another dataset")
    for error, message in zip(out["errors"], messages, strict=True):
        assert message in error

    dataset = open_dataset(tmp_path / "stories")
    assert dataset.manifest.licences == ("CC0-1.0",)
    assert not list((tmp_path / "stories").glob(".staging*"))
    pieces = {}
    for split in dataset.manifest.splits:
        for made in dataset.split(split):
            utterance = made["words"]
            assert split_of(utterance.text) == split
            assert len(utterance.words) <= 12
            assert " ".join(word.text for word in utterance.words) == utterance.text
            story, part = utterance.id.rsplit("/", 1)[1].split(".")
            pieces.setdefault(int(story), {})[int(part)] = utterance.text
    for number in range(60):
        text = " ".join(pieces[number][part] for part in sorted(pieces[number]))
        assert text == "Tell me: " + "One sentence here. " * 3 + f"And story number {number} ends."


def test_the_command_line(cache, tmp_path):
    (cache / "foreign.py").write_text(FOREIGN)
    letters = {chr(c): i for i, c in enumerate(range(32, 127))} | {"<eos>": 95}
    bpe = {"type": "BPE", "vocab": letters, "merges": [], "dropout": None, "unk_token": None}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "model": bpe}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    env = os.environ | {"SLM_JAX_CACHE": str(cache), "PYTHONPATH": str(cache)}
    out = tmp_path / "out"
    named = ["--task", "stories", "--module", "foreign", "--out", out]
    ids = ["--family", "text-letters", "--text_tokenizer", tmp_path / "tokenizer.json"]
    command = [sys.executable, "-m", "data_pipelines.tasks", "materialise", *named, *ids]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    dataset = open_dataset(out)
    assert f"--module foreign --out {out}" in dataset.manifest.command
    train = dataset.split("train", ["words", "text-letters"])
    shown = "".join(chr(32 + int(id)) for id in train[0]["text-letters"].values.ravel())
    assert shown == train[0]["words"].text
