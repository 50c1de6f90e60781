"""Our chunked EnCodec (48 kHz) against transformers' on random weights, in padded batches."""

import functools
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

from slm_jax.errors import UserError
from slm_jax.tokenizers.codecs.encodec import Encodec
from slm_jax.tokenizers.codecs.encodec_chunked import EncodecChunked

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LEVELS, FRAME, CHUNK, STRIDE = 4, 12, 120, 108
LENGTHS = [400, 30, 109, 216]  # within, just into the second chunk, and whole chunks


@functools.cache
def reference():
    config = transformers.EncodecConfig(
        sampling_rate=1200,
        target_bandwidths=[1.0, 2.0],  # two and four levels
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.1,
        overlap=0.1,
        use_causal_conv=False,
        norm_type="time_group_norm",
        hidden_size=8,
        num_filters=4,
        upsampling_ratios=[4, 3],
        codebook_size=32,
        codebook_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.EncodecModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
        latents = model.encoder(torch.randn(1, 2, 2400))[0]  # codebooks at their place and scale
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
def ours(folder) -> EncodecChunked:
    return EncodecChunked.load(folder)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    louder = np.linspace(0.5, 3, max(LENGTHS), dtype=np.float32)  # so that chunks differ in power
    return [row * louder[: len(row)] for row in noise(LENGTHS)]


def test_spec(ours):
    spec = ours.spec
    assert (spec.name, spec.kind) == ("encodec", "codes")
    assert spec.clock == pytest.approx(1200 * 10 / STRIDE)  # ten frames in every stride
    assert spec.vocab == (32,) * LEVELS
    assert (ours.sample_rate, ours.delay) == (1200, 0)


def test_padded_rows_equal_the_reference_alone(ours, rows):
    codes, frames = ours.encode(*padded(rows))
    scales = ours.scales(*padded(rows))
    audio = ours.decode(codes, frames, scales)
    assert_varied(np.asarray(codes[0]))
    for i, row in enumerate(rows):
        chunks = -(-len(row) // STRIDE)
        whole = np.pad(row, (0, (chunks - 1) * STRIDE + CHUNK - len(row)))
        stereo = torch.from_numpy(np.stack([whole, whole])[None])
        with torch.no_grad():
            out = reference().encode(stereo, bandwidth=2.0)
            # It also encodes the overlap that no chunk follows.
            theirs, powers = out.audio_codes[:chunks], out.audio_scales[:chunks]
            wave = reference().decode(theirs, powers).audio_values[0].mean(0).numpy()
        flat = theirs[:, 0].permute(0, 2, 1).reshape(-1, LEVELS)
        assert frames[i] == len(flat) == chunks * CHUNK // FRAME
        np.testing.assert_array_equal(codes[i, : frames[i]], flat)
        assert not codes[i, frames[i] :].any()
        np.testing.assert_allclose(scales[i, :chunks], torch.cat(powers)[:, 0], rtol=1e-5)
        assert_near(audio[i, : len(wave)], wave)
        assert not audio[i, len(wave) :].any()


def test_without_scales_chunks_have_unit_power(ours, rows):
    codes, frames = ours.encode(*padded(rows[:1]))
    plain = ours.decode(codes, frames)
    scaled = ours.decode(codes, frames, np.full((1, codes.shape[1] * FRAME // CHUNK), 2.0))
    assert_near(scaled, 2 * plain)
    with pytest.raises(ValueError, match="codes come in 10 frames, got 9"):
        ours.decode(codes[:, :9], [9])


def test_a_frame_hears_its_chunk(ours, rows):
    assert_lookahead(ours, rows[0], frame=0)


def test_bad_checkpoints_are_refused(folder, tmp_path):
    assert_refused(EncodecChunked.load, folder, tmp_path, "decoder.layers.0.norm.weight")
    with pytest.raises(UserError, match="use_causal_conv False is not supported"):
        Encodec.load(folder)
