"""Semantic distillation of our codec: nothing when off, and a first level that learns when on."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import tiny_whisper

from slm_jax.audio.decode import encode_flac
from slm_jax.data.schema import AudioItem
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import RvqConfig
from slm_jax.tokenizers.chunked import Window
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec, FrameCodecConfig
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.training.codec_job import CodecJob, CodecTraining, train
from slm_jax.training.codec_teacher import Distillation, Teacher, without_map
from slm_jax.training.fit import FitConfig

RATE, HOP, FRAMES = 16_000, 320, 20


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return str(tiny_whisper(tmp_path_factory.mktemp("whisper")))


def sounds(rows, samples, seed=0):
    """Tones that change every tenth of a second."""
    rng = np.random.default_rng(seed)
    pitch = rng.uniform(100, 900, (rows, samples // 1600 + 1)).repeat(1600, axis=1)[:, :samples]
    return (0.2 * np.sin(np.cumsum(pitch * 2 * np.pi / RATE, axis=1))).astype(np.float32)


def test_without_a_teacher_there_is_nothing_to_train_or_to_lose():
    off = Distillation(Teacher(), FRAMES, HOP)
    assert off.start(4, 0) == {} and off.features(sounds(2, FRAMES * HOP)) is None
    assert off.losses({}, np.zeros((2, FRAMES, 4)), None) == {}


@pytest.mark.parametrize("hop", [320, 160, 400])
def test_features_are_the_teachers_at_the_codecs_frames(whisper, hop):
    frames = 6400 // hop
    audio = sounds(1, frames * hop)
    found = Distillation(Teacher(whisper, 1), frames, hop).features(audio)[0]
    assert found.shape == (frames, 16)
    theirs = UnitEncoder.load(whisper, 1, Window(6400, 0, RATE, 20)).features(audio[0])
    middles = (np.arange(frames) + 0.5) * hop / 320 - 0.5
    for wanted, column in zip(theirs.T, found.T, strict=True):
        wanted = np.interp(middles, np.arange(len(theirs)), wanted)
        np.testing.assert_allclose(column, wanted, atol=1e-5)


def test_the_loss_is_one_less_the_cosine_and_reaches_the_latents(whisper):
    distillation = Distillation(Teacher(whisper, 1), FRAMES, HOP)
    params = distillation.start(16, 0)
    assert without_map(params | {"hear": 1}) == {"hear": 1}
    features = distillation.features(sounds(2, FRAMES * HOP))
    same = {"teacher": {"kernel": np.eye(16, dtype=np.float32)}}

    def lost(latents):
        return distillation.losses(same, latents, features)["teacher"]

    assert lost(3 * features) < 1e-5 and lost(-features) > 1.9
    grads = jax.grad(lost)(np.ones_like(features))
    assert np.abs(grads).max(axis=-1).min() > 0


def job(folder, **changes):
    return CodecJob(
        runs=str(folder),
        model=FrameCodecConfig(
            width=16,
            mlp=16,
            encoder_layers=1,
            decoder_layers=1,
            rvq=RvqConfig(levels=2, codes=8, width=4),
        ),
        training=CodecTraining(
            plain=FitConfig(10, log_every=10),
            codes=FitConfig(30, log_every=10),
            adversarial=FitConfig(1),
            batch=2,
            frames=FRAMES,
            **changes,
        ),
    )


def records(rows):
    return [{"audio": AudioItem(str(i), encode_flac(x, RATE))} for i, x in enumerate(rows)]


@pytest.mark.slow
def test_a_codec_learns_from_a_teacher_and_keeps_no_map(whisper, tmp_path):
    heard, held_out = records(sounds(4, RATE)), records(sounds(2, RATE, 1))
    recipe = job(tmp_path, peak_lr=1e-2, teacher=Teacher(whisper, 1))
    folder = train(recipe, heard, held_out)
    lines = (recipe.run_dir / "metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if "teacher" in line]
    assert logged[-1]["teacher"] < 0.8 * logged[0]["teacher"]
    assert any("held_out/teacher" in line for line in map(json.loads, lines))
    assert not [name for name in load_file(folder / "weights.safetensors") if "teacher" in name]
    codes, _ = FrameCodec.load(folder).encode(sounds(1, RATE), np.array([RATE]))
    assert len(np.unique(codes)) > 1


def test_a_teacher_that_is_not_there_is_named(whisper, tmp_path):
    with pytest.raises(UserError, match="2 layers, not 9"):
        Distillation(Teacher(whisper), FRAMES, HOP)
    with pytest.raises(UserError):
        Distillation(Teacher(str(tmp_path)), FRAMES, HOP)
    with pytest.raises(ValueError, match="not be negative"):
        Teacher(weight=-1.0)
