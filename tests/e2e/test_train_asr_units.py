"""launch/train_asr_units.py on real speech, in the real Whisper tiny.en, a few steps."""

import json
import runpy

import numpy as np
import pytest

from data_pipelines import corpora, fetch
from slm_jax.audio.decode import encode_flac, load
from slm_jax.data import dataset, schema
from slm_jax.errors import UserError
from slm_jax.paths import REPO
from slm_jax.tokenizers.asr_units import AsrUnits

RATE = 16_000
TINY = """
include "asr_units.gin"
STEPS = 16
BATCH = 2
AsrUnitsTraining.peak_lr = 0.001
FitConfig.log_every = 4
FitConfig.save_every = 8
"""


def write_data(root, audios, texts):
    """The first two are held out."""
    records = []
    for i, (audio, text) in enumerate(zip(audios, texts, strict=True)):
        words = tuple(schema.Word(word, 0.0, 0.1) for word in text.split())
        said = schema.Utterance(f"u{i}", words, "en", "s", len(audio) / RATE, "made", text)
        heard = schema.AudioItem(f"u{i}", encode_flac(audio, RATE))
        records.append({schema.WORDS: said, schema.AUDIO: heard})
    specs = [schema.words_spec(), schema.audio_spec()]
    splits = {"train": records[2:], "validation": records[:2]}
    dataset.write_dataset(root, "tiny", specs, splits)


@pytest.mark.slow
def test_units_are_trained_on_real_speech_and_resume(tmp_path, capsys):
    spoken, _ = corpora.read("asterisk", fetch.prompts("en"), corpora.Defaults())
    pairs = [(load(u.audio), u.text) for u in spoken if len(u.text.split()) >= 4]
    audios, texts = zip(*[(a, t) for a, t in pairs if len(a) < 3 * RATE][:8], strict=True)
    write_data(tmp_path / "data", audios, texts)
    recipe = tmp_path / "tiny.gin"
    recipe.write_text(TINY)
    train = runpy.run_path(str(REPO / "launch" / "train_asr_units.py"))["main"]
    flags = [
        f"--gin_file={recipe}",
        f"--gin.DATASETS={(str(tmp_path / 'data'),)}",
        f"--gin.AsrUnitsJob.runs={tmp_path / 'runs'}",
    ]
    train(flags)
    said = capsys.readouterr().out
    assert "6 of 6 utterances fit" in said and "held-out word error:" in said
    run = tmp_path / "runs" / "asr_units"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lost = [line["asr"] for line in lines if "asr" in line]
    assert len(lost) == 4 and lost[-1] < 0.8 * lost[0]
    judged = [line for line in lines if "held_out/token_error" in line]
    assert len(judged) == 2 and judged[-1]["held_out/codes"] > 1

    whisper = fetch.whisper_tiny_en()
    units = AsrUnits.load(whisper, run / "asr_units")
    assert units.spec.vocab == (6561,) and units.spec.clock == 25
    codes, frames = units.encode(audios[0][None], np.array([len(audios[0])]))
    assert frames.tolist() == [-(-len(audios[0]) // 640)] and len(np.unique(codes)) > 10

    before = units.spec.fingerprint
    train(flags)
    assert "asr_units: resuming at step 16 of 16" in capsys.readouterr().out
    assert AsrUnits.load(whisper, run / "asr_units").spec.fingerprint == before
    with pytest.raises(UserError, match="4 encoder layers, codes after 4"):
        train([*flags, "--gin.LAYER=4"])
    with pytest.raises(UserError, match="English only"):
        train([*flags, "--gin.AsrUnitsJob.language=fr"])
    with pytest.raises(UserError, match="at most 29 s"):
        write_data(tmp_path / "long", [np.zeros(30 * RATE)] * 3, ["silence"] * 3)
        train([*flags, f"--gin.DATASETS={(str(tmp_path / 'long'),)}"])
