"""Our SNAC against the `snac` package's on random weights, alone and in padded batches.

The package is not among the requirements of the tests: `pip install snac`.
"""

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
from safetensors.numpy import save_file

from slm_jax.errors import UserError
from slm_jax.tokenizers.codecs.snac import Snac, decoder_noise, split_levels

torch = pytest.importorskip("torch")
snac = pytest.importorskip("snac")

HOP = 6
LOCAL = {  # as the published models for 32 and 44.1 kHz, with attention
    "sampling_rate": 600,
    "encoder_dim": 16,
    "encoder_rates": [2, 3],
    "decoder_dim": 64,
    "decoder_rates": [3, 2],
    "attn_window_size": 6,
    "codebook_size": 32,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
PLAIN = LOCAL | {"attn_window_size": None, "encoder_dim": 4, "decoder_dim": 16}
DENSE = PLAIN | {"noise": False, "depthwise": False, "vq_strides": [2, 2, 1]}


@functools.cache
def reference(config: str):
    torch.manual_seed(0)
    model = snac.SNAC(**json.loads(config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("alpha"):
                weight.copy_(torch.rand_like(weight) + 0.5)
            elif name.endswith("original0"):
                # Small at the end, where the reference would else be cut off by its tanh.
                weight.copy_((torch.rand_like(weight) + 0.5) * (0.2 if len(weight) == 1 else 1))
            elif name.endswith("bias"):
                weight.copy_(torch.randn_like(weight) * 0.1)
    return model


@pytest.fixture(scope="module", params=[LOCAL, PLAIN, DENSE], ids=["local", "plain", "dense"])
def config(request) -> dict:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config) -> Path:
    path = tmp_path_factory.mktemp("snac")
    tensors = reference(json.dumps(config)).state_dict()
    save_file({name: x.numpy() for name, x in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def ours(folder) -> Snac:
    return Snac.load(folder)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    return noise([600, 1, 288])


def decode(model, codes, monkeypatch) -> np.ndarray:
    """The reference's audio with our noise."""
    stages = iter(range(len(model.decoder_rates)))

    def ours(shape, **_):
        return torch.from_numpy(np.array(decoder_noise(next(stages), shape[2])))[None, None]

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "randn", ours)
        return model.decode(codes)[0, 0].numpy()


def test_spec(ours, config):
    spec, counts = ours.spec, ours.counts
    assert counts == ((1, 2, 4) if config["vq_strides"][0] == 4 else (1, 1, 2))
    assert (spec.name, spec.kind, spec.vocab) == ("snac", "codes", (32,) * sum(counts))
    assert spec.clock == 600 / HOP / config["vq_strides"][0]


def test_padded_rows_equal_the_reference_alone(ours, config, rows, monkeypatch):
    model = reference(json.dumps(config))
    codes, frames = ours.encode(*padded(rows))
    audio = ours.decode(codes, frames)
    for i, row in enumerate(rows):
        with torch.no_grad():
            theirs = model.encode(torch.from_numpy(row)[None, None])
        levels = split_levels(codes[i : i + 1, : frames[i]], ours.counts)
        for mine, other in zip(levels, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
        assert not codes[i, frames[i] :].any()
        wave = decode(model, theirs, monkeypatch)
        assert len(wave) >= len(row)
        assert_near(audio[i, : len(wave)], wave)
        assert not audio[i, len(wave) :].any()
        if i == 0:
            for level in theirs:
                assert_varied(level[..., None].numpy())


def test_a_frame_hears_no_further_than_it_says(ours, rows):
    assert_lookahead(ours, rows[0], frame=3)


def test_bad_checkpoints_are_refused(ours, folder, config, tmp_path):
    assert_refused(Snac.load, folder, tmp_path, "quantizer.quantizers.1.codebook.weight")
    for change, message in (
        ({"latent_dim": 8}, "latent_dim 8 is not supported"),
        ({"vq_strides": [1, 2]}, r"vq_strides \(1, 2\) do not divide"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            Snac.load(tmp_path)
