"""The recipe of supervised units: what is predicted, and a tiny run."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import tiny_whisper

from slm_jax.audio.decode import encode_flac
from slm_jax.data.schema import AudioItem, Utterance
from slm_jax.nn.quantizers import FsqConfig
from slm_jax.tokenizers.asr_units import AsrUnits
from slm_jax.tokenizers.asr_units_network import AsrUnitsConfig
from slm_jax.tokenizers.whisper_text import WhisperText
from slm_jax.training.asr_units_job import (
    AsrUnitsJob,
    AsrUnitsTraining,
    collate,
    make_examples,
    train,
    usage,
)
from slm_jax.training.fit import FitConfig

RATE = 16_000
MODEL = AsrUnitsConfig(layer=1, pool=2, fsq=FsqConfig(levels=1, grid=(3, 3)))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """With a decoder that listens: of the published start, what is heard would not show."""
    folder = tiny_whisper(tmp_path_factory.mktemp("whisper"))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "embed_tokens" in name or "encoder_attn" in name:
            tensors[name] *= 20
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def records(texts, seconds=1.0, seed=0):
    """A tone for each text, higher where it is the second."""
    time = np.arange(int(seconds * RATE)) / RATE
    rng = np.random.default_rng(seed)
    made = []
    for text in texts:
        tone = 0.3 * np.sin(2 * np.pi * (900 if text == "two" else 200) * time)
        tone += rng.normal(size=len(time)) * 0.01
        said = Utterance("u", (), "en", "s", seconds, "made", text)
        made.append({"audio": AudioItem("u", encode_flac(tone, RATE)), "words": said})
    return made


def test_the_decoder_reads_prompt_and_text_and_says_text_and_end(whisper):
    text = WhisperText(whisper, 259)
    examples = make_examples(records(["ab", " ", "c" * 40], 2.5), MODEL, text, "en", 40)
    assert len(examples) == 1 and examples[0].frames == 63  # no text, or too much, is left out
    batch = collate(make_examples(records(["ab", "c"], 4.9), MODEL, text, "en", 40), MODEL)
    assert batch["audio"].shape == (2, 6 * RATE) and batch["frames"].tolist() == [123, 123]
    space, a, b, c = (text.encode(letter)[0] for letter in " abc")
    start, plain = text.prompt("en")
    assert batch["ids"].shape == (2, 32)
    assert batch["ids"][0, :5].tolist() == [start, plain, space, a, b]
    assert batch["targets"][0, :6].tolist() == [-1, space, a, b, text.end, -1]
    assert batch["targets"][1, :5].tolist() == [-1, space, c, text.end, -1]
    assert (batch["targets"][:, 5:] == -1).all()


def test_usage_counts_codes_and_their_evenness():
    found = usage(np.array([[0], [3], [0], [3]]))
    assert found == {"codes": 2.0, "perplexity": 2.0}
    assert usage(np.zeros((5, 2), int)) == {"codes": 1.0, "perplexity": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("below", "steps", "rate"), [(False, 40, 1e-2), (True, 160, 3e-3)])
def test_a_tiny_run_learns_and_saves_what_it_trained(whisper, tmp_path, below, steps, rate):
    job = AsrUnitsJob(
        runs=str(tmp_path),
        model=MODEL,
        training=AsrUnitsTraining(
            FitConfig(steps, log_every=10, save_every=20), batch=4, peak_lr=rate, below=below
        ),
    )
    train(job, records(["one", "two"] * 4), records(["one", "two"], seed=1), whisper)
    lines = (job.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lost = [line["asr"] for line in map(json.loads, lines) if "asr" in line]
    assert lost[-1] < 0.8 * lost[0]
    judged = [line for line in map(json.loads, lines) if "held_out/asr" in line]
    assert judged[-1]["held_out/asr"] < lost[0] and judged[-1]["held_out/codes"] > 1
    saved = load_file(job.run_dir / "asr_units" / "weights.safetensors")
    assert ("below/conv1/kernel" in saved) == below
    assert {"down/kernel", "up/kernel", "norm/scale", "below/norm/scale"} < set(saved)
    units = AsrUnits.load(whisper, job.run_dir / "asr_units")
    tone = 0.3 * np.sin(np.arange(RATE) * 0.5)
    codes, frames = units.encode(tone[None].astype(np.float32), [RATE])
    assert frames.tolist() == [25] and isinstance(units.read(codes, frames)[0], str)
