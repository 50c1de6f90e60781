"""Our wav2vec 2.0, HuBERT and WavLM against transformers' on random weights."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slm_jax.errors import UserError
from slm_jax.nn.tree import merge, pure_params
from slm_jax.tokenizers.ssl_encoder import SslEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LAYERS = 3
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 16, 20],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 7,
}
KINDS = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}
BASE = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
VARIANTS = {
    "hubert-base": ("hubert", BASE),
    "hubert-large": ("hubert", LARGE),
    "wav2vec2-base": ("wav2vec2", BASE),
    "wav2vec2-large": ("wav2vec2", LARGE),
    "wavlm-base": ("wavlm", BASE),
    "wavlm-large": ("wavlm", LARGE),
    "wavlm-group-prenorm": ("wavlm", BASE | {"do_stable_layer_norm": True}),
    "hubert-layer-postnorm": ("hubert", LARGE | {"do_stable_layer_norm": False}),
}
# One whose features tell: a group norm undoes what normalising does.
NOT_NORMALISED = "hubert-layer-postnorm"
every_variant = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def reference(name: str):
    kind, traits = VARIANTS[name]
    make_config, make_model = KINDS[kind]
    sizes = dict(SIZES, num_conv_pos_embeddings=15 if "large" in name else 16)
    if kind == "wavlm":
        sizes |= {"num_buckets": 24, "max_bucket_distance": 50}
    torch.manual_seed(0)
    model = make_model(make_config(**sizes, **traits, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        if kind == "wavlm":  # a bias that no one could miss
            model.encoder.layers[0].attention.rel_attn_embed.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ssl")

    @functools.cache
    def folder(name: str) -> Path:
        reference(name).save_pretrained(root / name)
        preprocessor = {"do_normalize": name != NOT_NORMALISED, "sampling_rate": 16_000}
        (root / name / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return root / name

    return folder


def audios() -> tuple[np.ndarray, np.ndarray]:
    """Three rows of noise away from zero mean, with noise for padding, and their lengths."""
    rng = np.random.default_rng(0)
    audio = (rng.normal(size=(3, 2000)) * 0.3 + 0.1).astype(np.float32)
    return audio, np.array([2000, 1234, 801], np.int32)


def all_layers(folder: Path, audio: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    graphdef, params = pure_params(SslEncoder.load(folder))

    @jax.jit
    def run(params, audio, lengths):
        encoder = merge(graphdef, params)
        return [encoder.features(audio, lengths, layer) for layer in range(LAYERS + 1)]

    return [np.asarray(features) for features in run(params, audio, lengths)]


def their_layers(name: str, audio: np.ndarray) -> list[np.ndarray]:
    """All hidden states [T, D] of one row by itself."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=name != NOT_NORMALISED)
    inputs = extractor(audio, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        return [s[0].numpy() for s in reference(name)(inputs, output_hidden_states=True)[-1]]


@pytest.fixture(scope="module")
def batches(folders):
    """All layers of the batch of `audios`, by variant; compiled once each."""
    return functools.cache(lambda name: all_layers(folders(name), *audios()))


@every_variant
def test_all_layers_of_a_padded_batch_are_those_of_each_row_alone(name, batches):
    audio, lengths = audios()
    ours = batches(name)
    worst = 0.0
    for row, length in enumerate(lengths):
        theirs = their_layers(name, audio[row, :length])
        assert len(theirs) == len(ours) == LAYERS + 1
        for mine, their in zip(ours, theirs, strict=True):
            assert not mine[row, len(their) :].any()
            worst = max(worst, np.abs(mine[row, : len(their)] - their).max())
    assert worst <= TOLERANCE


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-large"])
def test_a_row_alone_gives_what_it_gives_in_a_batch(name, folders, batches):
    audio, lengths = audios()
    batch = batches(name)
    alone = all_layers(folders(name), audio[1:2, : lengths[1]], lengths[1:2])
    for many, one in zip(batch, alone, strict=True):
        np.testing.assert_allclose(many[1, : one.shape[1]], one[0], atol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2-large", "wavlm-large", "hubert-base"])
def test_where_transformers_lets_padding_in(name, batches):
    """With an attention mask its large models agree with ours in a batch, its base ones do not."""
    audio, lengths = audios()
    ours = batches(name)[-1]
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    rows = [row[:length] for row, length in zip(audio, lengths, strict=True)]
    inputs = extractor(rows, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = reference(name)(**inputs, output_hidden_states=True).hidden_states[-1].numpy()
    valid = np.abs(ours).sum(-1, keepdims=True) > 0
    worst = np.abs((ours - theirs) * valid).max()
    if name == "hubert-base":
        assert worst > 0.1
    else:
        assert worst <= TOLERANCE


def test_config_comes_from_the_folder(folders):
    config = SslEncoder.load(folders("wavlm-large")).config
    assert (config.layers, config.heads, config.position_kernel) == (LAYERS, 4, 15)
    assert config.conv_widths == (12, 16, 20) and config.conv_bias and config.pre_norm
    assert (config.relative_buckets, config.relative_distance) == (24, 50)
    assert config.normalise and not SslEncoder.load(folders(NOT_NORMALISED)).config.normalise
    assert SslEncoder.load(folders("hubert-base")).config.relative_buckets == 0
    assert config.frames(2000) == 99
    np.testing.assert_array_equal(config.frames(np.array([0, 29, 30, 2000])), [0, 0, 1, 99])


def rewritten(source: Path, target: Path, rename) -> Path:
    """A copy of a checkpoint with its tensors as `rename` returns them."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(rename(load_file(source / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-large", "wavlm-base"])
def test_other_spellings_give_the_same_weights(name, folders, tmp_path):
    def rename(tensors):
        assert any("parametrizations.weight.original0" in tensor for tensor in tensors)
        spelled = {
            f"{VARIANTS[name][0]}."
            + tensor.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): array
            for tensor, array in tensors.items()
        }
        return spelled | {"lm_head.weight": np.zeros((7, 32), np.float32)}

    folder = rewritten(folders(name), tmp_path / "other", rename)
    params = [pure_params(SslEncoder.load(path))[1] for path in (folder, folders(name))]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), *params))


def test_wrong_tensors_are_named_all_at_once(folders, tmp_path):
    def spoil(tensors):
        del tensors["encoder.layers.1.feed_forward.output_dense.bias"]
        tensors["encoder.layers.3.layer_norm.bias"] = np.zeros(32, np.float32)  # of 3 layers
        tensors["encoder.layers.2.attention.q_proj.weight"] = np.zeros((32, 31), np.float32)
        return tensors

    folder = rewritten(folders("hubert-base"), tmp_path, spoil)
    with pytest.raises(UserError) as caught:
        SslEncoder.load(folder)
    for part in (
        "missing: encoder.layers.1.feed_forward.output_dense.bias",
        "unexpected: encoder.layers.3.layer_norm.bias",
        "misshapen: encoder.layers.2.attention.q_proj.weight (32, 31), wanted (32, 32)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "whisper"}, "is of a whisper"),
        ({"hidden_act": "relu"}, "hidden_act=relu"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"num_attention_heads": 5}, "multiple of heads"),
    ],
)
def test_foreign_configs_are_refused(changes, match, folders, tmp_path):
    folder = rewritten(folders("hubert-base"), tmp_path, dict)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(UserError, match=match):
        SslEncoder.load(folder)


def test_empty_and_damaged_folders_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        SslEncoder.load(tmp_path)
    folder = rewritten(folders("hubert-base"), tmp_path, dict)
    (folder / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    with pytest.raises(UserError, match="sampling_rate=8000"):
        SslEncoder.load(folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="not a safetensors file"):
        SslEncoder.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        SslEncoder.load(folder)


def test_layers_and_lengths_out_of_range_are_refused(folders):
    encoder = SslEncoder.load(folders("hubert-base"))
    with pytest.raises(ValueError, match="layer 4"):
        encoder.features(jnp.zeros((1, 2000)), jnp.array([2000]), LAYERS + 1)
    with pytest.raises(ValueError, match="too short"):
        encoder.features(jnp.zeros((1, 29)), jnp.array([29]), 0)


def test_a_row_without_a_frame_is_zero(folders):
    audio, _ = audios()
    features = all_layers(folders("hubert-base"), audio, np.array([2000, 20, 0], np.int32))
    for layer in features:
        assert np.isfinite(layer).all() and layer[0].any() and not layer[1:].any()
