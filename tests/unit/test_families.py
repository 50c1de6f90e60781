"""Tokenizers add their streams to a dataset that stands, and touch no other file."""

import hashlib
import io

import numpy as np
import pytest
import soundfile
from flax import nnx
from tiny_codecs import FRAME_CODEC, random_network
from tiny_models import tiny_whisper

from data_pipelines import build, families, fit_units
from data_pipelines.build_config import SPEECH_KINDS, UNITS, DatasetBuildConfig
from slm_jax.audio import decode
from slm_jax.data import schema
from slm_jax.data.dataset import open_dataset, write_dataset
from slm_jax.errors import UserError
from slm_jax.nn.tree import pure_params
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.codecs import frame_codec
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec, FrameCodecNetwork, save_codec
from slm_jax.tokenizers.codecs.kinds import CODECS
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer, save_units

RATE = 16_000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def write_codec(folder, seed=0):
    network = random_network(lambda: FrameCodecNetwork(FRAME_CODEC, rngs=nnx.Rngs(0)), seed)
    save_codec(folder, FRAME_CODEC, pure_params(network)[1])
    return folder


def write_units(folder, whisper, clusters=8):
    encoder = UnitEncoder.load(whisper, 1)
    noise = np.random.default_rng(0).normal(size=RATE) * 0.1
    save_units(
        folder,
        kmeans.fit(encoder.features(noise), clusters, 0, source=encoder.source),
        str(whisper),
        1,
    )
    return folder


def record(i, rng):
    sound = rng.normal(size=2000 + 900 * i) * 0.1
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="FLAC")
    words = (schema.Word("hm", 0.0, 0.1),)
    return {
        "words": schema.Utterance(f"u{i}", words, "en", "", len(sound) / RATE, "toy", f"hm {i}"),
        "audio": schema.AudioItem(f"u{i}", file.getvalue()),
    }


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A dataset of 11 recordings in two shards and an empty split."""
    monkeypatch.setenv("SLM_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    records = [record(i, rng) for i in range(11)]
    splits = {"train": records[:10], "validation": records[10:], "test": []}
    specs = [schema.words_spec("asr"), schema.audio_spec()]
    folder = tmp_path / "cache" / "datasets" / "toy"
    write_dataset(folder, "toy", specs, splits, records_per_shard=6)
    return folder


def checksums(root):
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in root.glob("*/*.arrayrecord")}


def config(*tokenizers, **changes):
    return DatasetBuildConfig(name="toy", families=(), tokenizers=tokenizers, **changes)


def test_streams_are_added_and_no_other_file_is_touched(root, tmp_path, whisper):
    codec = write_codec(tmp_path / "codec")
    before = checksums(root)
    build.ensure_dataset(config(f"codec={codec}"))
    after = checksums(root)
    assert before.items() < after.items()
    assert {p.parent.name for p in after.keys() - before.keys()} == {"codec"}
    units = write_units(tmp_path / "units", whisper)
    both = config(f"codec={codec}", f"units-tiny={units}")
    assert build.missing_parts(both) == ["units-tiny"]
    build.ensure_dataset(both)
    assert after.items() < checksums(root).items()

    held = open_dataset(root)
    held.verify()
    assert "--tokenizers" in held.manifest.command
    alone = {"codec": FrameCodec.load(codec), "units-tiny": UnitTokenizer.load(units)}
    assert held.specs["units-tiny"].fingerprint == alone["units-tiny"].spec.fingerprint
    assert held.specs["codec"] == alone["codec"].spec
    for split in ("train", "validation"):
        for joined in held.split(split, ["words", "audio", "codec", "units-tiny"]):
            sound = decode.load(joined["audio"].flac)
            for family, tokenizer in alone.items():
                codes, frames = tokenizer.encode(sound[None], np.array([len(sound)]))[:2]
                values = joined[family].values
                assert len(values) == frames[0] == -(-len(sound) // 320)
                np.testing.assert_array_equal(values, codes[0])


def test_streams_of_other_weights_are_refused(root, tmp_path, whisper):
    codec, units = write_codec(tmp_path / "codec"), write_units(tmp_path / "units", whisper)
    build.ensure_dataset(config(f"codec={codec}", f"units={units}"))
    before = checksums(root)
    for given in (
        f"codec={write_codec(tmp_path / 'other', seed=1)}",
        f"units={write_units(tmp_path / 'more', whisper, clusters=9)}",
    ):
        with pytest.raises(UserError, match=r"codes of .* were made by tokenizer \w+, not by"):
            build.ensure_dataset(config(given))
    build.ensure_dataset(config(f"codec-two={tmp_path / 'other'}"))
    assert before.items() < checksums(root).items()
    with pytest.raises(UserError, match="no codec in"):
        build.ensure_dataset(config(f"codec={tmp_path / 'nowhere'}"))


def test_a_family_of_fewer_levels_is_another_stream(root, tmp_path):
    codec = write_codec(tmp_path / "codec")
    build.ensure_dataset(config(f"codec={codec}", f"codec-few={codec}@2"))
    held = open_dataset(root)
    assert held.specs["codec-few"].levels == 2
    for record in held.split("train", ["codec", "codec-few"]):
        np.testing.assert_array_equal(record["codec-few"].values, record["codec"].values[:, :2])
    with pytest.raises(UserError, match=r"codes of .* were made by tokenizer"):
        build.ensure_dataset(config(f"codec-few={codec}@1"))


def test_the_starter_codec_is_the_default(root, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_codec, "STARTER", write_codec(tmp_path / "starter"))
    cfg = DatasetBuildConfig(name="toy", families=("codec",))
    build.ensure_dataset(cfg)
    made = open_dataset(root).specs["codec"]
    assert made == FrameCodec.load().spec and families.fingerprint(cfg, "codec") == made.fingerprint


def test_samples_and_latents_are_streams_too(root, tmp_path):
    codec = write_codec(tmp_path / "codec")
    cfg = DatasetBuildConfig(
        name="toy", families=("mulaw-1000",), tokenizers=(f"latents={codec}", f"codec={codec}")
    )
    build.ensure_dataset(cfg)
    held = open_dataset(root)
    held.verify()
    assert held.specs["mulaw-1000"] == families.load(cfg, "mulaw-1000").spec
    assert held.specs["latents"].kind == "continuous" and held.specs["latents"].width == 8
    for record in held.split("train", ["audio", "mulaw-1000", "latents", "codec"]):
        samples = len(decode.load(record["audio"].flac))
        assert len(record["mulaw-1000"].values) == pytest.approx(samples / 16, abs=1)
        assert record["latents"].values.dtype == np.float32
        assert record["latents"].values.shape == (len(record["codec"].values), 8)


def test_units_are_fitted_on_the_speech_of_datasets(root, tmp_path, whisper, capsys):
    out = tmp_path / "fitted"
    arguments = ["--datasets", "toy", "--encoder", str(whisper), "--layer", "1"]
    fit_units.main([*arguments, "--clusters", "5", "--frames", "60", "--out", str(out)])
    assert "5 units of" in capsys.readouterr().out
    build.ensure_dataset(config(f"units={out}"))
    assert open_dataset(root).specs["units"].vocab == (5,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizers": ("mimi",)}, "tokenizers: 'mimi' is not FAMILY=DIR"),
        ({"tokenizers": ("mimo=/models/mimi",)}, "tokenizers: 'mimo=/models/mimi'"),
        ({"tokenizers": ("mimi=",)}, "tokenizers"),
        ({"families": ("mimi",)}, "families: 'mimi'"),
        ({"families": ("units-hubert",)}, "families: 'units-hubert'"),
        ({"families": ("mulaw-fast",)}, "families: 'mulaw-fast'"),
        ({"tokenizers": ("mulaw-4000=/m",)}, "tokenizers: 'mulaw-4000=/m'"),
    ],
)
def test_families_without_weights_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        DatasetBuildConfig(**changes)


def test_families_are_those_named_and_those_with_folders():
    cfg = DatasetBuildConfig(tokenizers=("mimi=/m", "units-hubert=/a=b", "codec=/mine"))
    wanted = ("words", "audio", "text-smollm2", "taste", "speaker", "codec", "units")
    assert cfg.parts == (*wanted, "mimi", "units-hubert")
    assert [str(cfg.folder(f)) for f in ("units", "units-hubert", "codec")] == [
        *("None", "/a=b", "/mine")
    ]
    assert {*CODECS, UNITS, "asr_units", "latents", "mulaw"} == set(SPEECH_KINDS)
    assert build.parse(["x", "--tokenizers", "mimi=/m"]).tokenizers == ("mimi=/m",)
