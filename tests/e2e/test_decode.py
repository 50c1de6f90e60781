"""launch/decode.py on a checkpoint with random weights, the real Whisper and the starter TASTE."""

import json
import runpy
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from data_pipelines import fetch
from slm_jax import config
from slm_jax.audio import decode
from slm_jax.data.registry import MixtureSpec
from slm_jax.errors import UserError
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.models.speech_lm import SpeechLM, SpeechLMConfig
from slm_jax.models.system import System
from slm_jax.nn.backbone_config import BackboneConfig
from slm_jax.nn.tree import pure_params
from slm_jax.paths import REPO
from slm_jax.tokenizers.taste import Taste
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.job import TrainJob
from slm_jax.training.losses import LossWeights

BINARY = REPO / "launch" / "decode.py"


def save_run(folder, codebooks, fingerprint):
    backbone = BackboneConfig(
        vocab_size=49152, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=16,
        tie_embeddings=True,
    )  # fmt: skip
    speech = Delay(Stream("taste", codebooks), by=(1, 2, 3, 4), clock="word")
    layout = Layout("taste", Par((Text("text-smollm2", 49152, bos=0, eos=2), speech)))
    job = TrainJob(
        name=folder.name,
        runs=str(folder.parent),
        system=System(layout, SpeechLMConfig(codebooks, backbone, code_width=4)),
        data=MixtureSpec((("prompts", 1.0),)),
        losses=LossWeights(kl=0.0),
    )
    _, params = pure_params(SpeechLM(job.system.model, nnx.Rngs(0)))
    about = {"config": config.dump(job), "streams": {"taste": fingerprint}, "data": ""}
    state = {"params": params, "opt": {"none": jnp.zeros(1)}, "step": jnp.int32(1)}
    folder.mkdir(parents=True)
    with Store(folder, Checkpoints()) as store:
        store.save(state, 1, about, force=True)
    return folder


@pytest.fixture(scope="module")
def taste():
    return Taste.load(fetch.whisper_tiny_en(), fetch.locate("pronunciations"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, taste):
    folder = tmp_path_factory.mktemp("runs") / "random"
    return save_run(folder, taste.spec.vocab, taste.spec.fingerprint)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    found = next(fetch.prompts("en").rglob("agent-loginok.g722"))
    path = tmp_path_factory.mktemp("audio") / "prompt.wav"
    soundfile.write(path, decode.load(found, rate=8000), 8000)
    return path


def decode_main(*argv):
    runpy.run_path(str(BINARY))["main"](["--gin_file=decode.gin", *map(str, argv)])


@pytest.mark.slow
def test_a_spoken_prompt_is_continued_in_a_process_of_its_own(run, prompt, tmp_path):
    output = tmp_path / "said.wav"
    command = [sys.executable, BINARY, "--gin_file=decode.gin", f"--gin.CHECKPOINT={run}"]
    command += [f"--prompt_audio={prompt}", f"--output={output}", "--gin.MAX_WORDS=5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    audio, rate = soundfile.read(output)
    said = json.loads(output.with_suffix(".json").read_text())
    assert rate == 16_000 and len(audio) > 1600 and np.isfinite(audio).all()
    assert "agent" in said["prompt"].lower()
    assert 3 <= len(said["spoken"]) <= 5 and said["continuation"].split() == said["spoken"]
    assert np.shape(said["taste"]) == (len(said["spoken"]), 4)


@pytest.mark.slow
def test_written_prompts_and_reconstruction(run, prompt, tmp_path):
    output = tmp_path / "said.wav"
    decode_main(f"--gin.CHECKPOINT={run}", "--prompt_text=Please press one", f"--output={output}")
    said = json.loads(output.with_suffix(".json").read_text())
    assert said["prompt"] == "Please press one"
    assert said["spoken"][:3] == ["Please", "press", "one"]
    assert said["continuation"].split() == said["spoken"][3:]
    decode_main("--reconstruct", f"--prompt_audio={prompt}", f"--output={output}")
    assert "agent" in json.loads(output.with_suffix(".json").read_text())["prompt"].lower()
    assert soundfile.info(output).duration > 0.3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.CHECKPOINT=x"], "no prompt"),
        (["--prompt_text=a", "--prompt_audio=b.wav"], "both"),
        (["--prompt_text=a"], "no checkpoint given"),
        (["--prompt_text= ", "--gin.CHECKPOINT=x"], "empty"),
        (["--reconstruct", "--prompt_text=a"], "works on audio"),
        (["--prompt_text=a", "--gin.CHECKPOINT=x", "--output=x.mp3"], "does not end in .wav"),
        (["--prompt_text=a", "--gin.CHECKPOINT=x", "--output=absent/x.wav"], "does not exist"),
        (["--prompt_text=a", "--gin.CHECKPOINT=absent"], "no checkpoint in absent"),
        (["--prompt_text=a", "--gin.CHEKPOINT=x"], "CHEKPOINT"),
        (["--prompt_text=a", "--gin.DecodeLimits.min_words=0"], "min_words"),
    ],
)
def test_flags_that_cannot_work_are_one_clear_error(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        decode_main(*flags)
    assert list(tmp_path.iterdir()) == []


def test_a_text_file_named_wav_is_refused_before_anything_is_loaded(tmp_path):
    path = tmp_path / "note.wav"
    path.write_text("this is not audio")
    with pytest.raises(UserError, match=r"note\.wav"):
        decode_main("--gin.CHECKPOINT=x", f"--prompt_audio={path}", f"--output={tmp_path}/o.wav")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_checkpoint_of_another_tokenizer_is_refused(taste, tmp_path):
    other = save_run(tmp_path / "other", (8, 8, 8, 8), "")
    stale = save_run(tmp_path / "stale", taste.spec.vocab, "0123456789abcdef")
    for folder in (other, stale):
        with pytest.raises(UserError, match="trained on 'taste' codes"):
            decode_main(f"--gin.CHECKPOINT={folder}", "--prompt_text=a")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(run, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run, copy], check=True)
    for file in (copy / "checkpoints" / "1").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"")
    with pytest.raises(UserError):
        decode_main(f"--gin.CHECKPOINT={copy}", "--prompt_text=a")
