"""Our EnCodec against transformers' on random weights, in padded batches and as a stream."""

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
from slm_jax.tokenizers.codecs.encodec import Encodec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LEVELS, FRAME, FIRST = 4, 12, 7
LENGTHS = [245, 12, 70, 1, 240, 88]  # some shorter than the padding that mirrors them


@functools.cache
def reference():
    config = transformers.EncodecConfig(
        sampling_rate=1200,
        target_bandwidths=[1.0, 2.0],  # two and four levels
        hidden_size=8,
        num_filters=4,
        num_residual_layers=2,
        upsampling_ratios=[4, 3],
        codebook_size=32,
        codebook_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.EncodecModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("original0"):  # so that the norm is not just that of the direction
                weight.mul_(torch.rand_like(weight) + 1)
        latents = model.encoder(torch.randn(1, 1, 2400))[0]  # codebooks at their place and scale
        mean, spread = latents.mean(1), latents.std(1)
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(torch.randn(32, 8) * spread + mean)
            mean = 0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encodec")
    reference().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder) -> Encodec:
    return Encodec.load(folder)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    return noise(LENGTHS)


@pytest.fixture(scope="module")
def expected(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes [T, K] and audio [n] of every row alone."""
    made = []
    with torch.no_grad():
        for row in rows:
            out = reference().encode(torch.from_numpy(row)[None, None], bandwidth=2.0)
            audio = reference().decode(out.audio_codes, out.audio_scales).audio_values[0, 0]
            made.append((out.audio_codes[0, 0].T.numpy(), audio.numpy()))
    return made


def test_spec(ours):
    spec = ours.spec
    assert (spec.name, spec.kind, spec.clock) == ("encodec", "codes", 100.0)
    assert spec.vocab == (32,) * LEVELS and spec.lookahead == (FIRST - 1) / 100
    assert (ours.sample_rate, ours.delay, ours.first_frames) == (1200, 0, FIRST)


def test_the_first_frame_hears_what_is_mirrored(ours, rows):
    assert_lookahead(ours, rows[0], frame=0)


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


def test_a_bandwidth_is_a_number_of_levels(folder, rows, expected):
    codes, _ = Encodec.load(folder, levels=2).encode(*padded(rows[:1]))
    with torch.no_grad():
        out = reference().encode(torch.from_numpy(rows[0])[None, None], bandwidth=1.0)
    np.testing.assert_array_equal(codes[0], out.audio_codes[0, 0].T)


@pytest.mark.parametrize("chunks", [(FIRST, 1), (9, 1, 2)])
def test_streams_equal_whole_rows(ours, chunks):
    audio = np.stack(noise([20 * FRAME] * 2, seed=1))
    codes, frames = ours.encode(audio, [20 * FRAME] * 2)
    wave = ours.decode(codes, frames)
    assert_varied(np.asarray(codes))
    state, at, heard, spoken = ours.init_state(2), 0, [], []
    while at < 20:
        count = min(chunks[min(len(heard), len(chunks) - 1)], 20 - at)
        chunk = audio[:, at * FRAME : (at + count) * FRAME]
        now, state = ours.encode_step(state, chunk)
        piece, state = ours.decode_step(state, now)
        heard, spoken, at = [*heard, now], [*spoken, piece], at + count
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), codes)
    assert_near(np.concatenate(spoken, axis=1), wave)


def test_a_stream_begins_with_enough_to_mirror(ours):
    with pytest.raises(ValueError, match="begin with 7 frames"):
        ours.encode_step(ours.init_state(1), np.zeros((1, (FIRST - 1) * FRAME), np.float32))
    with pytest.raises(ValueError, match="begin with 7 frames"):
        ours.decode_step(ours.init_state(1), np.zeros((1, 1, LEVELS), np.int32))


def test_the_older_spelling_of_weight_norm(folder, ours, tmp_path):
    spellings = {"parametrizations.weight.original0": "weight_g"}
    spellings |= {"parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for new, old in spellings.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    assert any(name.endswith("weight_g") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert Encodec.load(tmp_path).spec == ours.spec


def test_bad_checkpoints_are_refused(folder, tmp_path):
    assert_refused(Encodec.load, folder, tmp_path, "lstm.weight_hh_l1")
    half = "decoder.layers.0.conv.parametrizations.weight.original1"
    assert_refused(Encodec.load, folder, tmp_path, half)
    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"trim_right_ratio": 0.5}))
    with pytest.raises(UserError, match=r"trim_right_ratio 0\.5 is not supported"):
        Encodec.load(tmp_path)
