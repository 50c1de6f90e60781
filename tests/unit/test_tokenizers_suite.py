"""The comparison of tokenizers: table, page and clips of a tiny codec beside a copy."""

import json

import numpy as np
import pytest

pytest.importorskip("pystoi")
pytest.importorskip("speechmos")
pytest.importorskip("pocketsphinx")

from pathlib import Path

import jax
from flax import nnx
from tiny_models import tiny_asr_units, tiny_unit_vocoder, tiny_units, tiny_whisper

from slm_jax.data.schema import Word
from slm_jax.errors import UserError
from slm_jax.evaluation.tokenizers import phones, probing, report, suite, systems
from slm_jax.evaluation.tokenizers.coders import Coder, mel_coder, on_frames, on_words
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.evaluation.tokenizers.probes import Budget
from slm_jax.evaluation.tokenizers.probing import Probing
from slm_jax.evaluation.tokenizers.resynthesis import Clip, Judges
from slm_jax.evaluation.tokenizers.unit_quality import Phone
from slm_jax.nn.quantizers import RvqConfig
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.codecs.frame_codec import FrameCodecConfig, FrameCodecNetwork, save_codec
from slm_jax.tokenizers.spoken_units import load_units

RATE = 16_000


def voice(hertz, seconds=1.0):
    time = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 15))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(20 * time))).astype(np.float32)


CORPUS = Corpus(
    ids=["one/a", "one/b", "two/a"],
    sets=["one", "one", "two"],
    voices=["one/low", "one/high", "two/low"],
    languages=["en", "en", "cs"],
    texts=["red dog", "red dog", None],
    words=[()] * 3,
    audios=[voice(100), voice(200, 1.3), voice(104)],
    licences={"one": "MIT", "two": "CC0-1.0"},
)


def embed(audio):
    spectrum = np.abs(np.fft.rfft(audio, RATE))
    return np.array([1.0, 0.0]) if np.argmax(spectrum[:300]) < 150 else np.array([0.0, 1.0])


JUDGES = Judges(lambda audios: ["red dog"] * len(audios), embed, lambda audio: 3.0)


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    config = FrameCodecConfig(
        width=8, mlp=8, encoder_layers=1, decoder_layers=1, rvq=RvqConfig(2, 16, 4)
    )
    params = pure_params(FrameCodecNetwork(config, rngs=nnx.Rngs(0)))[1]
    shape = params["codebooks"].shape
    params["codebooks"] = jax.random.normal(jax.random.key(1), shape)
    folder = tmp_path_factory.mktemp("codec")
    save_codec(folder, config, params)
    return folder


@pytest.fixture(scope="module")
def codec(codec_folder):
    return systems.parse_codec(f"codec={codec_folder}")


def aligner(audio, words):
    """Four phones, whatever is said."""
    return [(name, at / 4, (at + 1) / 4) for at, name in enumerate("rdrg")] if words else []


def copy(audio):
    return Clip(audio)


def test_a_codec_is_a_system_at_its_rate(codec, codec_folder):
    assert codec.name == "codec 0.4 kbit/s"
    audio = voice(150, 0.7)
    clip = codec.system(audio)
    assert clip.audio.shape == audio.shape and np.isfinite(clip.audio).all()
    assert clip.coded.values.shape == (35, 2) and clip.bits == 35 * 8
    few = systems.parse_codec(f"codec={codec_folder}@1")
    assert few.name == "codec 0.2 kbit/s" and few.coder.vocab == (16,)
    with pytest.raises(UserError, match="no codec: mp3=x"):
        systems.parse_codec("mp3=x")


def test_a_coder_gives_what_the_system_sends(codec):
    audio = voice(150, 0.7)
    coder, sent = codec.coder, codec.system(audio).coded
    for one, other in zip(coder.encode(audio), sent, strict=True):
        np.testing.assert_array_equal(one, other)
    assert coder.vocab == (16, 16) and sent.times[:2].tolist() == [0.01, 0.03]
    mel = mel_coder().encode(audio)
    assert mel.values.shape == (35, 160) and len(mel.times) == 35


def test_units_are_spoken_by_the_vocoder_that_fits(tmp_path):
    whisper = tiny_whisper(tmp_path / "whisper")
    kmeans, supervised = tmp_path / "kmeans", tmp_path / "supervised"
    folders = [tiny_units(kmeans, whisper), tiny_asr_units(supervised, whisper)]
    vocoders = []
    for run, folder in zip(("one", "two"), folders, strict=True):
        spec = load_units(folder, str(whisper), Path).spec
        vocoders.append(tmp_path / run / "unit_vocoder")
        tiny_unit_vocoder(spec.fingerprint, spec.vocab[0]).save(vocoders[-1])

    def found(*some):
        return systems.all_units(folders, some, str(whisper), Path)

    names = ["units 0.2 kbit/s, 12 of kmeans", "units 0.1 kbit/s, 27 of supervised"]
    assert [(one.name, one.system) for one in found()] == [(name, None) for name in names]
    one, two = found(*vocoders)
    assert one.name == f"{names[0]}, spoken by one" and two.name == f"{names[1]}, spoken by two"
    audio = voice(150, 0.7)
    for judged, bits in ((one, 35 * np.log2(12)), (two, 9 * np.log2(27))):
        clip = judged.system(audio)
        assert clip.audio.shape == audio.shape and np.isfinite(clip.audio).all()
        assert clip.bits == pytest.approx(bits + 4 * 8)  # codes, and four numbers of a speaker
        np.testing.assert_array_equal(clip.coded.values, judged.coder.encode(audio).values)
    with pytest.raises(UserError, match="two/unit_vocoder: trained for none of the units"):
        systems.all_units(folders[:1], vocoders, str(whisper), Path)
    both = {one.name: one.system, two.name: two.system}
    coders = {one.name: one.coder, two.name: two.coder}
    result = suite.compare(both, coders, CORPUS, JUDGES, tmp_path / "out", aligner=aligner)
    assert result["systems"][one.name]["mean"]["mel"]["value"] > 0
    assert result["systems"][two.name]["failed"] == 0


def test_table_page_and_clips(codec, tmp_path):
    both = {"copy": copy, codec.name: codec.system}
    coders = {codec.name: codec.coder, "log-mel": mel_coder()}
    result = suite.compare(both, coders, CORPUS, JUDGES, tmp_path, aligner=aligner)
    assert json.loads((tmp_path / report.JSON).read_text()) == json.loads(json.dumps(result))
    assert result["systems"]["copy"]["mean"]["mel"]["value"] == 0
    assert result["systems"][codec.name]["mean"]["mel"]["value"] > 0.1
    assert result["systems"][codec.name]["bits_per_second"] == pytest.approx(400, rel=0.02)
    found = result["statistics"][codec.name]
    assert found["items"] == 50 + 65 + 50 and found["noise"]["value"] > 0
    judged = result["phones"]["systems"]
    assert judged[codec.name]["agreement"]["frames"] == 2 * 50  # the first second of both texts
    assert judged["log-mel"]["agreement"] is None
    table = (tmp_path / report.MARKDOWN).read_text()
    row = next(line for line in table.splitlines() if line.startswith("| codec"))
    assert "| 0.40 |" in row
    assert "EnCodec 24 kHz | 1.5 | 1.268" in table  # published, in a table of its own
    assert "Emotion or style: not available, no classifier" in table
    other = table.partition("## Resynthesis of other languages")[2].partition("##")[0]
    assert "| two | copy | 0.00 (0.00 to 0.00) |" in other and f"| two | {codec.name} |" in other
    assert "| one |" not in other and "trained on English alone" in other
    assert "two (cs; 1 utterances, 0.0 min; CC0-1.0)" in table
    mean, one = (result["systems"][codec.name][part] for part in ("mean", "sets"))
    assert mean["mel"]["value"] == pytest.approx(one["one"]["mel"]["value"])
    assert mean["mel"]["n"] == 2 and one["two"]["wer"] is None
    assert "## Probe" not in table and phones.PROTOCOL in table
    page = (tmp_path / report.HTML).read_text()
    assert page.count("<audio") == 6 and "{{" not in page and "<svg" in page
    assert len(list((tmp_path / report.CLIPS).glob("*.flac"))) == 6


def test_codes_that_nothing_changes_have_no_errors(tmp_path):
    coder = Coder(lambda a: on_frames(np.zeros((len(a) // 320, 1), np.int64), 50.0), (2,), 50.0, "")
    steady = {"steady": lambda audio: Clip(audio, 8.0, coder.encode(audio))}
    result = suite.compare(steady, {"steady": coder}, CORPUS, JUDGES, tmp_path, aligner=aligner)
    found = result["statistics"]["steady"]
    assert found["noise"]["value"] == found["gain"]["value"] == 0
    assert found["levels"][0]["used"] == 1 and found["entropy_bits_per_second"] == 0
    assert result["phones"]["systems"]["steady"]["agreement"]["pnmi"] == pytest.approx(0, abs=1e-9)


def test_phones_of_units_that_are_phones():
    placed = [[Phone(*one) for one in aligner(None, "red dog")]] * 2
    codes = np.repeat([0, 1, 0, 2], 5)[:, None]
    frames = Coder(lambda audio: None, (3,), 20.0, "")
    found = phones.judge_units(frames, [on_frames(codes, 20.0)] * 2, placed, ["x", "y"])
    assert found["agreement"]["pnmi"] == pytest.approx(1) and found["agreement"]["frames"] == 40
    # "d" and the second "r" stand in contexts of their own: nothing to tell apart.
    assert found["within"] == {"error": None, "triples": 0}
    words = Coder(lambda audio: None, (3,), "word", "")
    assert "words, not frames" in phones.judge_units(words, [], placed, [])["unavailable"]
    silent = phones.judge_units(frames, [on_frames(codes, 20.0)], [[]], ["x"])
    assert silent["unavailable"].startswith("no English utterance")


def pitched(audio):
    """Two codes a second, the first of which tells a low voice from a high one."""
    codes = np.full((2, 1), int(embed(audio)[1]))
    return on_words(codes, [Word("red", 0.0, 0.5), Word("dog", 0.5, 1.0)])


def test_probes_are_trained_once_and_reported(tmp_path, monkeypatch):
    train = Corpus(
        ids=list("abcd"),
        sets=["one"] * 4,
        voices=["one/low", "one/high"] * 2,
        languages=["en"] * 4,
        texts=[None] * 4,
        words=[()] * 4,
        audios=[voice(hertz) for hertz in (101, 199, 103, 205)],
    )
    coders = {"pitch": Coder(pitched, (2,), "word", "pitch")}
    budget = Budget(width=8, steps=40, batch=4, rate=1e-2)
    asked = Probing(train, CORPUS, {}, budget)

    def compare():
        return suite.compare(
            {"copy": copy}, coders, CORPUS, JUDGES, tmp_path, aligner=aligner, probing=asked
        )

    result = compare()
    assert json.loads((tmp_path / report.JSON).read_text()) == json.loads(json.dumps(result))
    tasks = result["probes"]["tasks"]
    assert tasks["speaker"]["systems"]["pitch"]["linear"]["accuracy"]["value"] == 1
    assert tasks["speaker"]["baseline"]["accuracy"]["value"] == 0.5
    for name in ("words", "keyword", "gender", "language", "emotion"):
        assert "systems" not in tasks[name] and tasks[name]["unavailable"]
    table = (tmp_path / report.MARKDOWN).read_text()
    assert "## Probe: emotion\n\nNot available: no corpus with emotions could be had." in table
    assert "| hearing nothing | 50.0 (0.0 to 100.0)" in table and "seed 0" in table
    assert "| pitch | not available: its items are words, not frames |" in table
    assert "Probe: speaker" in (tmp_path / report.HTML).read_text()

    def fail(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(probing, "probe", fail)
    assert compare()["probes"] == result["probes"]
