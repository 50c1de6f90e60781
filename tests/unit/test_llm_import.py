import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.interop import safetensors
from slm_jax.interop.export import export_llm
from slm_jax.interop.llm import llm_config, load_llm
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.nn import tree
from slm_jax.nn.rope import RopeScaling

LLAMA = BackboneConfig(
    vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
FAMILIES = {
    "llama": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64)},
    "linear": {"rope_scaling": RopeScaling("linear", 2.0), "tie_embeddings": True},
    "mistral": {"window": 5},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "norm_eps": 1e-6, "rope_theta": 1e6},
}


def random_params(config, seed=0):
    abstract = tree.pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))[1]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), abstract)


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in one file."""
    export_llm(LLAMA, random_params(LLAMA), tmp_path / "llm", dtype="float32")
    return tmp_path / "llm"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_goes_out_comes_back(tmp_path, family):
    config = dataclasses.replace(LLAMA, **FAMILIES[family])
    params = random_params(config)
    export_llm(config, params, tmp_path / "x", dtype="float32", file_bytes=4000)
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 3
    got_config, got = load_llm(tmp_path / "x")
    assert got_config == config == llm_config(tmp_path / "x")
    want = tree.flatten(params)
    assert tree.flatten(got).keys() == want.keys()
    for name, value in tree.flatten(got).items():
        np.testing.assert_array_equal(value, want[name])


def test_lora_is_merged(tmp_path):
    config = dataclasses.replace(LLAMA, lora_rank=2, lora_alpha=3.0)
    params = random_params(config)
    export_llm(config, params, tmp_path / "x", dtype="float32")
    _, merged = load_llm(tmp_path / "x")
    up, got = params["layers"]["mlp"]["up"], merged["layers"]["mlp"]["up"]["kernel"]
    want = up["kernel"] + 1.5 * np.matmul(up["lora_a"], up["lora_b"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_other_parts_are_written_beside(tmp_path):
    extra = {"fusion": {"weights": jnp.arange(3.0)}}
    texts = {"config.gin": "NAME = 1"}
    export_llm(LLAMA, random_params(LLAMA), tmp_path / "x", extra=extra, texts=texts)
    assert (tmp_path / "x" / "config.gin").read_text() == "NAME = 1"
    speech = safetensors.read(tmp_path / "x" / "speech.safetensors")
    np.testing.assert_array_equal(speech["fusion/weights"], [0, 1, 2])


def test_export_overwrites_nothing_and_leaves_nothing_half_done(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_llm(LLAMA, random_params(LLAMA), tmp_path / "x")
    params = random_params(LLAMA)
    del params["norm"]
    with pytest.raises(UserError, match="missing: norm/scale"):
        export_llm(LLAMA, params, tmp_path / "y")
    both = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="both qkv_bias and qk_norm"):
        export_llm(both, params, tmp_path / "y")
    params = random_params(LLAMA)
    params["norm"]["scale"] = params["norm"]["scale"][:3]
    with pytest.raises(ValueError, match="norm"):
        export_llm(LLAMA, params, tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_weights_go_straight_into_shardings(folder):
    config = llm_config(folder)
    axes = tree.logical_axes(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    rules = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}

    def sharding(names):
        spec = jax.sharding.PartitionSpec(*map(rules.get, names))
        return jax.sharding.NamedSharding(mesh, spec)

    wanted = jax.tree.map(sharding, axes, is_leaf=lambda x: isinstance(x, tuple))
    _, sharded = load_llm(folder, wanted)
    _, whole = load_llm(folder)
    for name, value in tree.flatten(sharded).items():
        assert value.sharding == tree.flatten(wanted)[name]
        np.testing.assert_array_equal(value, tree.flatten(whole)[name])
    gate = sharded["layers"]["mlp"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.shape == (2, 16 // 4, 24 // 2)


def test_weights_keep_or_change_their_precision(folder, tmp_path):
    export_llm(LLAMA, load_llm(folder)[1], tmp_path / "low")  # bfloat16
    config, params = load_llm(tmp_path / "low", dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    _, wide = load_llm(tmp_path / "low")
    for got, want in zip(jax.tree.leaves(wide), jax.tree.leaves(load_llm(folder)[1]), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=2**-8)


def rewrite(folder, change):
    """Rewrites the weights; `change` edits the dict of arrays."""
    arrays = {
        name: np.array(x) for name, x in safetensors.read(folder / "model.safetensors").items()
    }
    change(arrays)
    entries = {name: (x.dtype, x.shape) for name, x in arrays.items()}
    safetensors.write(folder / "model.safetensors", entries, arrays.values())


def test_every_weight_that_does_not_fit_is_named(folder):
    def change(arrays):
        del arrays["model.norm.weight"]
        arrays["model.layers.7.mlp.up_proj.weight"] = np.zeros(3, np.float32)
        arrays["model.layers.1.self_attn.q_proj.weight"] = np.zeros((2, 2), np.float32)

    rewrite(folder, change)
    with pytest.raises(UserError) as error:
        load_llm(folder)
    for part in (
        "missing: model.norm.weight;",
        "unexpected: model.layers.7.mlp.up_proj.weight;",
        "misshapen: model.layers.1.self_attn.q_proj.weight (2, 2), wanted (32, 16)",
    ):
        assert part in str(error.value)


def test_what_is_stored_beside_the_weights_is_passed_over(tmp_path):
    def change(arrays):
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    config = dataclasses.replace(LLAMA, tie_embeddings=True)
    folder = tmp_path / "tied"
    export_llm(config, random_params(config), folder)
    before = jax.tree.leaves(load_llm(folder)[1])
    rewrite(folder, change)
    after = jax.tree.leaves(load_llm(folder)[1])
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM, known are Llama"),
        ({"attention_bias": True}, "sets attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"use_sliding_window": True, "sliding_window": 4}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "by 'yarn'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_key_value_heads": 5}, "heads=4 is not a multiple of kv_heads=5"),
    ],
)
def test_what_the_backbone_lacks_is_refused_by_name(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        llm_config(folder)


def test_missing_and_damaged_files_are_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        load_llm(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        load_llm(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        load_llm(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_llm(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_llm(folder)
    with pytest.raises(UserError, match="is no text LLM"):
        load_llm(folder / "x.bin")


def test_configs_of_transformers_4_and_5_are_read(folder):
    want = llm_config(folder)
    rope = {"rope_type": "default", "rope_theta": want.rope_theta}
    edit_config(folder, rope_parameters=rope, rope_theta=None)
    assert llm_config(folder) == want
    old = {"type": "linear", "factor": 2.0}
    edit_config(folder, rope_parameters=None, rope_scaling=old, rope_theta=7.0)
    assert llm_config(folder).rope_scaling == RopeScaling("linear", 2.0)
    assert llm_config(folder).rope_theta == 7.0
