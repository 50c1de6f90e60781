"""Our Mimi against transformers' on random weights, in rows, in padded batches and as a stream."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from codec_checks import assert_near, assert_refused, assert_varied, noise, padded

from slm_jax.errors import UserError
from slm_jax.tokenizers.codecs.mimi import Mimi

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LEVELS, FRAME = 5, 24
LENGTHS = [505, 24, 131, 1, 480]  # most not whole frames; the longest well beyond the window


@functools.cache
def reference():
    config = transformers.MimiConfig(
        hidden_size=16,
        num_filters=4,
        num_residual_layers=2,
        upsampling_ratios=[4, 3],
        upsample_groups=16,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=LEVELS,
        num_semantic_quantizers=2,
        num_hidden_layers=2,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=6,
        sampling_rate=2400,
        layer_scale_initial_scale=0.5,
    )
    torch.manual_seed(0)
    model = transformers.MimiModel(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.copy_(torch.randn_like(buffer) * 3)
            if name.endswith("cluster_usage"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
        model.decoder.decoder_seanet.layers[-1].conv.weight.mul_(0.05)  # audio near 1
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mimi")
    reference().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder) -> Mimi:
    return Mimi.load(folder)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    return noise(LENGTHS)


@pytest.fixture(scope="module")
def expected(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes [T, K] and audio [n] of every row alone."""
    made = []
    with torch.no_grad():
        for row in rows:
            codes = reference().encode(torch.from_numpy(row)[None, None]).audio_codes
            audio = reference().decode(codes).audio_values[0, 0]
            made.append((codes[0].T.numpy(), audio.numpy()))
    return made


def test_spec(ours, folder):
    spec = ours.spec
    assert (spec.name, spec.kind, spec.clock) == ("mimi", "codes", 100.0)
    assert spec.vocab == (32,) * LEVELS and spec.lookahead == 0
    assert (ours.sample_rate, ours.delay) == (2400, 0)
    assert spec.fingerprint == Mimi.load(folder).spec.fingerprint
    assert spec.fingerprint != Mimi.load(folder, levels=3).spec.fingerprint


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
    coarse = Mimi.load(folder, levels=3)
    codes, frames = coarse.encode(*padded(rows[:1]))
    np.testing.assert_array_equal(codes[0], expected[0][0][:, :3])
    with torch.no_grad():
        theirs = reference().decode(torch.from_numpy(np.array(codes)).mT.long()).audio_values
    assert_near(coarse.decode(codes, frames), theirs[:, 0])
    for wrong in (1, LEVELS + 1):  # below the semantic levels, and beyond all
        with pytest.raises(UserError, match="5 levels and needs 2"):
            Mimi.load(folder, levels=wrong)


@pytest.mark.parametrize("chunks", [(1,), (3, 1, 2)])
def test_streams_equal_whole_rows(ours, chunks):
    audio = np.stack(noise([20 * FRAME] * 2, seed=1))
    codes, frames = ours.encode(audio, [20 * FRAME] * 2)
    assert_varied(np.asarray(codes))
    wave = ours.decode(codes, frames)
    state, at, heard, spoken = ours.init_state(2), 0, [], []
    while at < 20:
        count = min(chunks[len(heard) % len(chunks)], 20 - at)
        chunk = audio[:, at * FRAME : (at + count) * FRAME]
        now, state = ours.encode_step(state, chunk)
        piece, state = ours.decode_step(state, now)
        heard, spoken, at = [*heard, now], [*spoken, piece], at + count
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), codes)
    assert_near(np.concatenate(spoken, axis=1), wave)


def test_a_stream_keeps_its_size(ours):
    state = ours.init_state(2)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    codes, state = ours.encode_step(state, np.zeros((2, 2 * FRAME), np.float32))
    _, state = ours.decode_step(state, codes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    with pytest.raises(ValueError, match="whole frames of 24"):
        ours.encode_step(state, np.zeros((2, 25), np.float32))


def test_no_frame_hears_later_samples(ours, rows):
    audio = rows[0][None, :480].copy()
    before, _ = ours.encode(audio, [480])
    audio[:, 10 * FRAME :] += 1
    after, _ = ours.encode(audio, [480])
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert (before[:, 10] != after[:, 10]).any()


def test_bad_checkpoints_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        Mimi.load(tmp_path)
    assert_refused(Mimi.load, folder, tmp_path, "downsample.conv.weight")
    assert_refused(Mimi.load, folder, tmp_path, "layers.1.codebook.cluster_usage")
    fields = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "encodec"}, "type encodec, not mimi"),
        ({"use_causal_conv": False}, "use_causal_conv False is not supported"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(UserError, match=message):
            Mimi.load(tmp_path)
