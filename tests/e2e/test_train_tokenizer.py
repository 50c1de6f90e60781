"""launch/train_tokenizer.py from a built dataset to a tokenizer folder, with tiny networks."""

import runpy

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_whisper

from data_pipelines import build
from data_pipelines.build_config import DatasetBuildConfig
from slm_jax.paths import REPO
from slm_jax.tokenizers.taste import RATE, Taste

TINY = """
include "taste_tokenizer.gin"
TasteConfig.value_layers = (1,)
TasteConfig.aggregator_layers = (0,)
TasteConfig.speaker_width = 4
FsqConfig.levels = 2
FsqConfig.grid = (4, 2)
TasteDecoderConfig.text_width = 8
TasteDecoderConfig.text_mlp = 8
TasteDecoderConfig.text_layers = 1
TasteDecoderConfig.told_layers = 1
TasteDecoderConfig.width = 8
TasteDecoderConfig.mlp = 8
TasteDecoderConfig.layers = 1
VocoderConfig.width = 8
VocoderConfig.mlp = 8
VocoderConfig.layers = 1
VocoderTraining.batch = 2
VocoderTraining.frames = 20
TasteTraining.batch = 2
vocoder/FitConfig.steps = 1
adversarial/FitConfig.steps = 1
spelling/FitConfig.steps = 1
text/FitConfig.steps = 1
latent/FitConfig.steps = 1
quantized/FitConfig.steps = 1
adapt/FitConfig.steps = 1
"""


@pytest.mark.slow
def test_a_tokenizer_is_trained_from_a_dataset_and_speaks(tmp_path, capsys):
    whisper = tiny_whisper(tmp_path / "whisper")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        soundfile.write(corpus / f"{i:02d}.flac", rng.normal(size=2 * RATE) * 0.1, RATE)
        (corpus / f"{i:02d}.txt").write_text(f"Take number {i}.")
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
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(TINY)
    train = runpy.run_path(str(REPO / "launch" / "train_tokenizer.py"))["main"]
    dictionary = tmp_path / "words.dict"
    dictionary.write_text("take T EY1 K\nnumber N AH1 M B ER0\n")
    flags = [
        f"--gin_file={recipe}",
        f"--gin.TasteJob.pronunciations={dictionary}",
        f"--gin.DATASETS={(str(dataset),) * 2}",
        f"--gin.TasteJob.whisper={whisper}",
        f"--gin.TasteJob.runs={tmp_path / 'runs'}",
    ]
    train(flags)
    said = capsys.readouterr().out
    assert "adapt 1/1" in said

    taste = Taste.load(whisper, dictionary, tmp_path / "runs" / "taste_tokenizer" / "taste")
    assert taste.spec.vocab == (8, 8)
    [audio], _ = taste.decode([["hello"]], [np.zeros((1, 2), np.int32)], [taste.default_speaker])
    assert len(audio) > 0 and np.isfinite(audio).all()

    train(flags)
    assert "adapt: resuming at step 1 of 1" in capsys.readouterr().out
