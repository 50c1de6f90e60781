"""launch/train_codec.py from a built dataset to a codec folder, with a tiny network."""

import json
import runpy

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_whisper

from data_pipelines import build
from data_pipelines.build_config import DatasetBuildConfig
from slm_jax.errors import UserError
from slm_jax.paths import REPO
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec

RATE = 16_000
TINY = """
include "codec.gin"
FrameCodecConfig.width = 8
FrameCodecConfig.mlp = 8
FrameCodecConfig.encoder_layers = 1
FrameCodecConfig.decoder_layers = 1
RvqConfig.levels = 2
RvqConfig.codes = 16
RvqConfig.width = 4
CodecTraining.batch = 2
CodecTraining.frames = 20
plain/FitConfig.steps = 2
codes/FitConfig.steps = 2
adversarial/FitConfig.steps = 1
FitConfig.log_every = 1
FitConfig.save_every = 1
"""


@pytest.mark.slow
def test_a_codec_is_trained_from_a_dataset_and_resumes(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        soundfile.write(corpus / f"{i:02d}.flac", rng.normal(size=RATE // 2) * 0.1, RATE)
        (corpus / f"{i:02d}.txt").write_text(f"Line {i} is read.")
    dataset = build.ensure_dataset(
        DatasetBuildConfig(
            name="tiny",
            out=str(tmp_path / "tiny"),
            corpus="folder",
            path=str(corpus),
            asr=str(tiny_whisper(tmp_path / "whisper")),
            families=(),
            workers=1,
        )
    )
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(TINY)
    train = runpy.run_path(str(REPO / "launch" / "train_codec.py"))["main"]
    flags = [
        f"--gin_file={recipe}",
        f"--gin.DATASETS={(str(dataset),) * 2}",
        f"--gin.CodecJob.runs={tmp_path / 'runs'}",
    ]
    train(flags)
    assert "adversarial 1/1" in capsys.readouterr().out
    run = tmp_path / "runs" / "codec"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in logged} == {"plain", "codes", "adversarial"}
    assert any("held_out/mel" in line for line in logged)

    codec = FrameCodec.load(run / "codec")
    assert codec.spec.vocab == (16, 16) and codec.spec.clock == 50
    audio = (rng.normal(size=(1, RATE)) * 0.1).astype(np.float32)
    codes, frames = codec.encode(audio, np.array([RATE]))
    assert frames.tolist() == [50] and len(np.unique(codes)) > 1
    assert np.isfinite(codec.decode(codes, frames)).all()

    before = codec.spec.fingerprint
    train(flags)
    assert "adversarial: resuming at step 1 of 1" in capsys.readouterr().out
    assert FrameCodec.load(run / "codec").spec.fingerprint == before
    with pytest.raises(UserError, match=r"lasts 4\.0 s"):
        train([*flags, "--gin.CodecTraining.frames=200"])
    with pytest.raises(UserError, match="16000 Hz"):
        train([*flags, "--gin.FrameCodecConfig.sample_rate=24000"])
