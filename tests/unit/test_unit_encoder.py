"""Units of tiny encoders of both kinds: audio alone decides, and other features are refused."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_models import tiny_whisper

from slm_jax.errors import UserError
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.ssl_encoder import SslEncoder
from slm_jax.tokenizers.unit_encoder import UnitEncoder

transformers = pytest.importorskip("transformers")

RATE = 16_000


def tiny_hubert(folder, strides=(10, 8, 4)):
    config = transformers.HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8),
        conv_kernel=strides,
        conv_stride=strides,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    transformers.HubertModel(config).save_pretrained(folder)
    settings = {"do_normalize": True, "sampling_rate": RATE, "feature_size": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=["hubert", "whisper"])
def folder(request, tmp_path_factory):
    make = {"hubert": tiny_hubert, "whisper": tiny_whisper}[request.param]
    return make(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def encoder(folder):
    return UnitEncoder.load(folder, 1)


def audio(samples, seed=0):
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


@pytest.mark.parametrize("samples", [RATE // 2, RATE, RATE + 1000])
def test_features_are_those_of_the_layer_at_50_hz(folder, encoder, samples):
    found = encoder.features(audio(samples))
    if "hubert" in str(folder):
        alone = SslEncoder.load(folder).features(audio(samples)[None], np.array([samples]), 1)[0]
        np.testing.assert_allclose(found, alone, atol=1e-4)
    assert found.shape[1] == 16 and -2 < len(found) - samples / 320 < 1
    assert np.abs(found - UnitEncoder.load(folder, 2).features(audio(samples))).max() > 1e-3


def test_units_are_the_nearest_centroids_and_the_layer_has_a_name(folder, encoder):
    audios = [audio(RATE // 2, 1), audio(RATE // 3, 2)]
    features = encoder.features(audios[0])
    means = kmeans.fit(features, 5, 0, source=encoder.source)
    units = encoder.units(means, audios)
    np.testing.assert_array_equal(units[0], means.assign(features))
    assert [len(u) for u in units] == [len(encoder.features(a)) for a in audios]
    other = UnitEncoder.load(folder, 2)
    assert UnitEncoder.load(folder, 1).source == encoder.source != other.source
    with pytest.raises(UserError, match="another encoder, layer or window"):
        other.units(means, audios)
    narrow = dataclasses.replace(means, centroids=means.centroids[:, :-1], source="")
    with pytest.raises(UserError, match="another encoder, layer or window"):
        encoder.units(narrow, audios)


def test_layers_and_rates_that_are_not_there_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="2 layers, not 3"):
        UnitEncoder.load(folder, 3)
    with pytest.raises(UserError, match=r"100\.0 frames a second"):
        UnitEncoder.load(tiny_hubert(tmp_path, (10, 4, 4)), 1)
    with pytest.raises(UserError):
        UnitEncoder.load(tmp_path / "nothing", 1)


def test_long_recordings_are_heard_in_windows(encoder):
    """Six seconds at a time, of which each but the first begins a second earlier."""
    long = audio(13 * RATE)
    found = encoder.features(long)
    assert len(found) in (650, 649)
    np.testing.assert_array_equal(found[:300], encoder.features(long[: 7 * RATE])[:300])
    np.testing.assert_allclose(found[600:], encoder.features(long[11 * RATE :])[50:], atol=1e-4)
