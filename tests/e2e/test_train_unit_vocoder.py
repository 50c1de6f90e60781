"""launch/train_unit_vocoder.py from a built dataset to a unit vocoder, with tiny networks."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_asr_units, tiny_units, tiny_whisper

from data_pipelines import build
from data_pipelines.build_config import DatasetBuildConfig
from slm_jax.errors import UserError
from slm_jax.paths import REPO
from slm_jax.tokenizers.spoken_units import fiftieths, load_units
from slm_jax.tokenizers.unit_vocoder import UnitVocoder
from slm_jax.tokenizers.units import deduplicate

RATE = 16_000
TINY = """
include "unit_vocoder.gin"
BATCH = 2
UnitVocoderConfig.width = 8
UnitVocoderConfig.mlp = 8
UnitVocoderConfig.duration_layers = 1
UnitVocoderConfig.unit_layers = 1
UnitVocoderConfig.frame_layers = 1
UnitVocoderConfig.speaker_width = 4
FlowConfig.width = 8
FlowConfig.mlp = 8
FlowConfig.layers = 1
FlowConfig.steps = 2
VocoderConfig.width = 8
VocoderConfig.mlp = 8
VocoderConfig.layers = 1
VocoderTraining.frames = 20
spectral/FitConfig.steps = 1
adversarial/FitConfig.steps = 1
units/FitConfig.steps = 30
FitConfig.log_every = 10
FitConfig.save_every = 10
"""


def speech(rng, seconds=0.7):
    """Sounds of two pitches and colours and a hiss, in random order."""
    time = np.arange(int(seconds * RATE)) / RATE
    kinds = np.repeat(rng.integers(0, 3, 20), len(time) // 20 + 1)[: len(time)]
    low = np.sign(np.sin(2 * np.pi * 120 * time)) * 0.1
    high = np.sin(2 * np.pi * 240 * time) * 0.1
    return np.choose(kinds, [low, high, rng.normal(size=len(time)) * 0.03]).astype(np.float32)


@pytest.mark.slow
def test_a_unit_vocoder_is_trained_from_a_dataset_and_resumes(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    audios = [speech(rng) for _ in range(12)]
    for i, audio in enumerate(audios):
        soundfile.write(corpus / f"{i:02d}.flac", audio, RATE)
        (corpus / f"{i:02d}.txt").write_text(f"Line {i} is read.")
    whisper = tiny_whisper(tmp_path / "whisper")
    dataset = build.ensure_dataset(
        DatasetBuildConfig(
            name="tiny",
            out=str(tmp_path / "tiny"),
            corpus="folder",
            path=str(corpus),
            asr=str(whisper),
            families=(),
            workers=1,
        )
    )
    units = load_units(tiny_units(tmp_path / "units", whisper, audios), "", Path)
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(TINY)
    train = runpy.run_path(str(REPO / "launch" / "train_unit_vocoder.py"))["main"]
    flags = [
        f"--gin_file={recipe}",
        f"--gin.DATASETS={(str(dataset),) * 2}",
        f"--gin.UNITS={tmp_path / 'units'}",
        f"--gin.UnitVocoderJob.runs={tmp_path / 'runs'}",
        "--gin.MELS=flow",
    ]
    train(flags)
    assert "units 30/30" in capsys.readouterr().out
    run = tmp_path / "runs" / "unit_vocoder"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in logged} == {"vocoder", "adversarial", "units"}
    held_out = [line for line in logged if "held_out/mel" in line]
    for name in ("mel", "duration", "flow"):
        first, *_, last = [line[f"held_out/{name}"] for line in held_out]
        assert last < first, name

    vocoder = UnitVocoder.load(run / "unit_vocoder", units.spec.fingerprint)
    assert vocoder.config.units == 12 and vocoder.config.mels == "flow"
    row = fiftieths(units, audios[0])
    assert len(np.unique(row)) > 1
    speaker = vocoder.speaker(audios[0])
    said = vocoder.decode(row[None], np.ones((1, len(row)), int), speaker[None])
    assert said.samples.tolist() == [len(row) * 320] and np.isfinite(said.audio).all()
    assert np.isfinite(
        vocoder.decode(deduplicate(row).units[None], None, speaker[None]).audio
    ).all()

    before = (run / "unit_vocoder" / "weights.safetensors").read_bytes()
    train(flags)
    assert "units: resuming at step 30 of 30" in capsys.readouterr().out
    assert (run / "unit_vocoder" / "weights.safetensors").read_bytes() == before
    with pytest.raises(UserError, match=r"kmeans\.safetensors does not exist"):
        train([*flags, f"--gin.UNITS={tmp_path}"])
    with pytest.raises(UserError, match="is for 8000"):
        train([*flags, "--gin.MelConfig.rate=8000", "--gin.MelConfig.fmax=4000"])

    supervised = tiny_asr_units(tmp_path / "supervised", whisper)
    more = [f"--gin.UNITS={supervised}", f"--gin.UnitVocoderJob.whisper={whisper}"]
    kept = [flag for flag in flags if "UNITS" not in flag]
    train([*kept, *more, "--gin.NAME=slow", "--gin.units/FitConfig.steps=2"])
    spec = load_units(supervised, str(whisper), Path).spec
    slow = UnitVocoder.load(tmp_path / "runs" / "slow" / "unit_vocoder", spec.fingerprint)
    assert slow.config.units == 27
