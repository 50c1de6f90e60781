"""Our DAC against transformers' on random weights, alone and in padded batches."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from codec_checks import (
    assert_lookahead,
    assert_near,
    assert_refused,
    assert_varied,
    noise,
    padded,
)
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError
from slm_jax.tokenizers.codecs.dac import Dac

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LEVELS, FRAME = 4, 12
LENGTHS = [600, 12, 131, 1, 300]


def gain(name: str) -> float:
    """Keeps the activations of a random network, and so its rounding errors, near 1."""
    return 0.3 if "res_unit" in name or name == "decoder.conv2.weight" else 1.0


@functools.cache
def reference():
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 3, 2],  # with an odd one: each frame then lacks some audio
        decoder_hidden_size=32,
        n_codebooks=LEVELS,
        codebook_size=32,
        codebook_dim=4,
        sampling_rate=1200,
    )
    torch.manual_seed(0)
    model = transformers.DacModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fan_in = weight[0].numel()
            if name.endswith("alpha"):
                weight.copy_(torch.rand_like(weight) + 0.5)
            elif name.endswith("bias"):
                weight.copy_(torch.randn_like(weight) * 0.1)
            elif "codebook" in name:
                weight.copy_(torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * gain(name) * fan_in**-0.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dac")
    reference().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder) -> Dac:
    return Dac.load(folder)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    return noise(LENGTHS)


@pytest.fixture(scope="module")
def expected(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes [T, K] and audio [n] of every row alone, padded as DacFeatureExtractor does."""
    made = []
    with torch.no_grad():
        for row in rows:
            whole = torch.from_numpy(np.pad(row, (0, -len(row) % FRAME)))[None, None]
            codes = reference().encode(whole).audio_codes
            audio = reference().decode(audio_codes=codes).audio_values[0]
            made.append((codes[0].T.numpy(), audio.numpy()))
    return made


def test_spec(ours):
    spec = ours.spec
    assert (spec.name, spec.kind, spec.clock) == ("dac", "codes", 100.0)
    assert spec.vocab == (32,) * LEVELS
    assert (ours.sample_rate, ours.delay) == (1200, 0)


def test_padded_rows_equal_the_reference_alone(ours, rows, expected):
    assert_varied(expected[0][0])
    codes, frames = ours.encode(*padded(rows))
    audio = ours.decode(codes, frames)
    assert frames.tolist() == [len(theirs) for theirs, _ in expected]
    for i, (theirs, wave) in enumerate(expected):
        np.testing.assert_array_equal(codes[i, : frames[i]], theirs)
        assert not codes[i, frames[i] :].any()
        assert_near(audio[i, : len(wave)], wave)
        assert not audio[i, len(wave) :].any()


def test_fewer_levels_are_the_first_ones(folder, rows, expected):
    coarse = Dac.load(folder, levels=2)
    codes, frames = coarse.encode(*padded(rows[:1]))
    np.testing.assert_array_equal(codes[0], expected[0][0][:, :2])
    with torch.no_grad():
        theirs = reference().decode(audio_codes=torch.from_numpy(np.array(codes)).mT.long())
    assert_near(coarse.decode(codes, frames), theirs.audio_values)


def test_a_frame_hears_no_further_than_it_says(ours, rows):
    assert_lookahead(ours, rows[0], frame=10)


@pytest.mark.parametrize("spelling", ["weight_", "parametrizations.weight.original"])
def test_weight_norm_is_folded(folder, ours, rows, tmp_path, spelling):
    endings = ("g", "v") if spelling == "weight_" else ("0", "1")
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "conv" in name and name.endswith(".weight"):
            norm = np.sqrt((tensor**2).sum((1, 2), keepdims=True))
            stem = name.removesuffix("weight") + spelling
            tensors |= {stem + endings[0]: norm, stem + endings[1]: tensor * 1.7}
        else:
            tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    codes, frames = ours.encode(*padded(rows[:1]))
    assert_near(Dac.load(tmp_path).decode(codes, frames), ours.decode(codes, frames))


def test_bad_checkpoints_are_refused(folder, tmp_path):
    assert_refused(Dac.load, folder, tmp_path, "decoder.block.1.snake1.alpha")
    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"upsampling_ratios": [2, 2, 3]}))
    with pytest.raises(UserError, match=r"upsampling_ratios .* is not supported"):
        Dac.load(tmp_path)
