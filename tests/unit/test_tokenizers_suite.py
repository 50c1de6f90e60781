"""The comparison of tokenizers: table, page and clips of a tiny codec beside a copy."""

import json

import numpy as np
import pytest

pytest.importorskip("pystoi")
pytest.importorskip("speechmos")

import jax
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.evaluation.tokenizers import report, suite, systems
from slm_jax.evaluation.tokenizers.resynthesis import Clip, Corpus, Judges
from slm_jax.nn.quantizers import RvqConfig
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers.codecs.frame_codec import FrameCodecConfig, FrameCodecNetwork, save_codec

RATE = 16_000


def voice(hertz, seconds=1.0):
    time = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 15))
    return (0.1 * tone * (0.6 + 0.4 * np.sin(20 * time))).astype(np.float32)


CORPUS = Corpus(
    ids=["one/a", "one/b", "two/a"],
    sets=["one", "one", "two"],
    voices=["one/low", "one/high", "two/low"],
    texts=["red dog", "red dog", None],
    audios=[voice(100), voice(200, 1.3), voice(104)],
)


def embed(audio):
    spectrum = np.abs(np.fft.rfft(audio, RATE))
    return np.array([1.0, 0.0]) if np.argmax(spectrum[:300]) < 150 else np.array([0.0, 1.0])


JUDGES = Judges(lambda audios: ["red dog"] * len(audios), embed, lambda audio: 3.0)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    config = FrameCodecConfig(
        width=8, mlp=8, encoder_layers=1, decoder_layers=1, rvq=RvqConfig(2, 16, 4)
    )
    params = pure_params(FrameCodecNetwork(config, rngs=nnx.Rngs(0)))[1]
    shape = params["codebooks"].shape
    params["codebooks"] = jax.random.normal(jax.random.key(1), shape)
    folder = tmp_path_factory.mktemp("codec")
    save_codec(folder, config, params)
    return systems.parse_codec(f"codec={folder}")


def test_a_codec_is_a_system_at_its_rate(codec):
    assert codec.name == "codec 0.4 kbit/s"
    audio = voice(150, 0.7)
    clip = systems.codec_system(codec.codec)(audio)
    assert clip.audio.shape == audio.shape and np.isfinite(clip.audio).all()
    assert clip.codes.shape == (35, 2) and clip.bits == 35 * 8
    with pytest.raises(UserError, match="no codec: mp3=x"):
        systems.parse_codec("mp3=x")


def test_table_page_and_clips(codec, tmp_path):
    both = {"copy": lambda audio: Clip(audio), codec.name: systems.codec_system(codec.codec)}
    vocabularies = {codec.name: codec.codec.spec.vocab}
    result = suite.compare(both, vocabularies, CORPUS, JUDGES, tmp_path)
    assert json.loads((tmp_path / report.JSON).read_text()) == json.loads(json.dumps(result))
    assert result["systems"]["copy"]["mean"]["mel"]["value"] == 0
    assert result["systems"][codec.name]["mean"]["mel"]["value"] > 0.1
    assert result["systems"][codec.name]["bits_per_second"] == pytest.approx(400, rel=0.02)
    found = result["statistics"][codec.name]
    assert found["items"] == 50 + 65 + 50 and found["noise"]["value"] > 0
    table = (tmp_path / report.MARKDOWN).read_text()
    row = next(line for line in table.splitlines() if line.startswith("| codec"))
    assert "| 0.40 |" in row
    assert "EnCodec 24 kHz | 1.5 | 1.268" in table  # published, in a table of its own
    page = (tmp_path / report.HTML).read_text()
    assert page.count("<audio") == 6 and "{{" not in page and "<svg" in page
    assert len(list((tmp_path / report.CLIPS).glob("*.flac"))) == 6


def test_codes_that_nothing_changes_have_no_errors(tmp_path):
    steady = {
        "steady": lambda audio: Clip(audio, 8.0, np.zeros((len(audio) // 320, 1), np.int64)),
    }
    result = suite.compare(steady, {"steady": (2,)}, CORPUS, JUDGES, tmp_path)
    found = result["statistics"]["steady"]
    assert found["noise"]["value"] == found["gain"]["value"] == 0
    assert found["levels"][0]["used"] == 1 and found["entropy_bits_per_second"] == 0
