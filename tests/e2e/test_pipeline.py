"""Audio files to a complete dataset, through every stage, with models of a few thousand weights."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from flax import nnx
from tiny_models import byte_tokenizer, tiny_taste, tiny_whisper

from data_pipelines import build, fetch, quarantine, report
from data_pipelines.build_config import DatasetBuildConfig
from slm_jax.audio import decode
from slm_jax.data.dataset import open_dataset
from slm_jax.data.registry import MixtureSpec
from slm_jax.data.split import split_of
from slm_jax.decoding.engine import DecodeLimits
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.samplers import Sampling
from slm_jax.errors import UserError
from slm_jax.evaluation.listen import Listener
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.models.speech_lm import SpeechLMConfig
from slm_jax.models.system import System
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training.job import TrainJob
from slm_jax.training.losses import LossWeights

RATE = 16_000
FAMILIES = ("text-bytes", "taste", "speaker")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with models and a corpus of 12 good and 4 bad files."""
    root = tmp_path_factory.mktemp("parts")
    (root / "llm").mkdir()
    byte_tokenizer(root / "llm" / "tokenizer.json", ["<end>"])
    (root / "llm" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    whisper = tiny_whisper(root / "whisper")
    tiny_taste(root / "taste", whisper)
    corpus = root / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        noise = rng.normal(size=RATE + 1000 * i) * 0.1
        soundfile.write(corpus / f"{i:02d}.flac", noise, RATE)
        (corpus / f"{i:02d}.txt").write_text(f"This is the sentence number {i}.")
    whole = (corpus / "00.flac").read_bytes()
    (corpus / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (corpus / "text.wav").write_text("this is not audio")
    soundfile.write(corpus / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(corpus / "short.wav", np.full(100, 0.5), RATE)
    return root


def config(parts, out, **changes):
    settings = {
        "name": "tiny",
        "out": str(out),
        "corpus": "folder",
        "path": str(parts / "corpus"),
        "asr": str(parts / "whisper"),
        "text_tokenizer": str(parts / "llm"),
        "taste": str(parts / "taste"),
        "pronunciations": str(parts / "taste"),
        "families": FAMILIES,
        "records_per_shard": 5,
        "workers": 1,
    }
    return DatasetBuildConfig(**settings | changes)


@pytest.fixture(scope="module")
def built(parts, tmp_path_factory):
    return build.ensure_dataset(config(parts, tmp_path_factory.mktemp("data") / "tiny"))


def test_every_family_is_there_and_joined(parts, built):
    held = open_dataset(built)
    held.verify()
    tokenizer = TextTokenizer.load(parts / "llm")
    seen = set()
    for split in held.manifest.splits:
        for record in held.split(split, ["words", "audio", *FAMILIES]):
            words, audio = record["words"], decode.load(record["audio"].flac)
            assert split_of(words.text) == split
            assert [w.text for w in words.words] == words.text.split()
            assert words.duration == len(audio) / RATE
            starts = [w.start for w in words.words]
            assert starts == sorted(starts) and words.words[-1].end <= words.duration + 0.02
            assert record["taste"].values.shape == (len(words.words), 2)
            assert record["speaker"].values.shape == (1, 4)
            assert tokenizer.decode(record["text-bytes"].values[:, 0]) == words.text
            assert set(record["text-bytes"].index) == set(range(len(words.words)))
            seen.add(words.id)
    assert seen == {f"{i:02d}.flac" for i in range(12)}


def test_bad_files_are_quarantined_and_reported(built):
    reasons = {r.id: r.reason for r in quarantine.read(built / quarantine.FILE)}
    assert reasons.pop("cut.flac") in ("truncated", "unreadable")
    assert reasons == {
        "text.wav": "unreadable",
        "silent.wav": quarantine.SILENT,
        "short.wav": quarantine.TOO_SHORT,
    }
    figures = report.read(built)
    assert sum(figures["quarantined"].values()) == 4
    assert sum(split["utterances"] for split in figures["splits"].values()) == 12
    assert "left out" in report.text(built)


def test_nothing_but_the_dataset_is_left(built):
    assert not (built / build.STAGING).exists()
    assert not [p for p in built.rglob("*") if p.name.endswith(".tmp")]


KILLED = """
import os, signal, sys
from data_pipelines import build, {module}

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

{module}.{function} = die
build.ensure_dataset(build.parse(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_in_each_stage_it_continues_to_the_same_bytes(parts, built, tmp_path):
    wanted = config(parts, tmp_path / "tiny")
    arguments = build.command(wanted).split()[3:]
    for module, function in [
        ("transcribe", "with_words"),
        ("build", "publish"),
        ("tokens", "text_item"),
        ("report", "write"),
    ]:
        script = tmp_path / f"{module}.py"
        script.write_text(KILLED.format(module=module, function=function))
        run = subprocess.run(
            [sys.executable, script, *arguments], env=os.environ, capture_output=True, timeout=300
        )
        assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    build.ensure_dataset(wanted)
    names = sorted(str(p.relative_to(built)) for p in built.glob("*/*.arrayrecord"))
    assert names == sorted(
        str(p.relative_to(wanted.root)) for p in wanted.root.glob("*/*.arrayrecord")
    )
    for name in names:
        assert (built / name).read_bytes() == (wanted.root / name).read_bytes()


def test_a_new_tokenizer_with_other_weights_needs_another_name(parts, built, tmp_path):
    other = tmp_path / "taste"
    tiny_taste(other, parts / "whisper")
    weights = (other / "config.json").read_text()
    (other / "config.json").write_text(weights + "\n")
    manifest = json.loads((built / "manifest.json").read_text())
    del manifest["families"]["taste"]
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", built, copy], check=True)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another tokenizer"):
        build.ensure_dataset(config(parts, copy, taste=str(other)))


def test_a_model_in_training_is_heard_on_held_out_prompts(parts, built, tmp_path):
    """The same prompts at each evaluation, by whatever the weights are by then."""
    vocab = open_dataset(built).specs["taste"].vocab
    made = json.loads((parts / "llm" / "tokenizer.json").read_text())
    for letter in "aeiost":  # ids that begin a word, so that the model can
        made["model"]["vocab"]["Ġ" + letter] = ids = 1 + max(256, *made["model"]["vocab"].values())
        made["model"]["merges"].append(["Ġ", letter])
    shutil.copytree(parts / "llm", tmp_path / "llm")
    (tmp_path / "llm" / "tokenizer.json").write_text(json.dumps(made))
    text, levels = Text("text-words", ids + 1, bos=256, eos=256), len(vocab)
    delayed = Delay(Stream("taste", vocab), by=(1,) * levels, clock="word")
    backbone = BackboneConfig(
        vocab_size=ids + 1, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16
    )
    job = TrainJob(
        "tiny",
        System(Layout("tiny", Par((text, delayed))), SpeechLMConfig(vocab, backbone, code_width=8)),
        MixtureSpec(((str(built), 1.0),)),
        losses=LossWeights(kl=0.0),
        listen=2,
    )
    listen = Listener(
        job,
        text_tokenizer=tmp_path / "llm",
        whisper=parts / "whisper",
        pronunciations=parts / "taste",
        decode=DecodeJob(taste=str(parts / "taste"), text=Sampling(), limits=DecodeLimits(3, 3)),
    )
    first, again, other = (
        listen(pure_params(job.system.build(nnx.Rngs(seed)))[1]) for seed in (0, 0, 1)
    )
    held = open_dataset(built)
    known = [r["words"].text for s in ("validation", "test") for r in held.split(s, ["words"])]
    for clip in first:
        prompt, continuation = clip.text.split(" [...] ")
        assert any(text.startswith(prompt) for text in known) and continuation
        assert len(clip.audio) and np.abs(clip.audio).max() <= 1 and clip.rate == RATE
    assert 1 <= len(first) <= 2
    assert [c.text for c in first] == [c.text for c in again] != [c.text for c in other]


@pytest.mark.slow
def test_the_real_recogniser_on_real_prompts(parts, tmp_path):
    """Eight prompts: words are those of the transcripts, in time order, with high confidence."""
    folder = fetch.prompts()
    listed = dict(
        line.split(": ", 1)
        for line in (folder / "transcripts.txt").read_text("utf-8").splitlines()
        if ": " in line
    )
    names = ["agent-loginok", "all-circuits-busy-now", "conf-full", "invalid"]
    names += ["conf-locked", "privacy-incorrect", "vm-goodbye", "auth-thankyou"]
    lines = [
        {"audio": str(folder / "sounds" / f"{name}.g722"), "text": listed[name]} for name in names
    ]
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines))
    wanted = config(
        parts,
        tmp_path / "real",
        corpus="jsonl",
        path=str(manifest),
        asr="whisper_tiny_en",
        families=("text-bytes",),
        wer=True,
    )
    figures = report.read(build.ensure_dataset(wanted))
    assert sum(split["utterances"] for split in figures["splits"].values()) == len(names)
    assert figures["word_confidence"] > 0.6
    assert figures["wer"]["wer"] < 0.15
