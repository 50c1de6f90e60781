"""Tiny models of every family, as published, against `transformers`."""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.interop.export import export_llm
from slm_jax.interop.llm import llm_config, load_llm
from slm_jax.models.backbone import Backbone, init_cache
from slm_jax.nn import tree

TINY = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT_LLAMA3 = LLAMA3 | {"original_max_position_embeddings": 32}  # shows in a short text
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES = {
    "llama2": ("Llama", {"num_key_value_heads": 6}),
    "llama2_linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama3": ("Llama", {"rope_parameters": SHORT_LLAMA3}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
IDS = np.random.default_rng(0).integers(0, 61, (2, 14))
POSITIONS = np.broadcast_to(np.arange(14), IDS.shape)


def build(architecture, traits):
    """The torch model, every weight random: when new, some are zeros or ones."""
    config = getattr(transformers, f"{architecture}Config")(**(TINY | traits))
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in key))
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


def module(config, params):
    graphdef, wanted = tree.pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))
    return tree.merge(graphdef, tree.load_flat(wanted, tree.flatten(params)))


@jax.jit
def run(model):
    return model.logits(model(model.embed(IDS), POSITIONS)[0])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Published in several files: the logits of transformers, our model."""
    folder = tmp_path_factory.mktemp("hf")
    model = build(*FAMILIES[request.param])
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return logits(model), module(*load_llm(folder))


def test_logits_equal_transformers(family):
    want, ours = family
    np.testing.assert_allclose(run(ours), want, atol=1e-4)


def test_cached_decode_equals_transformers(family):
    want, ours = family

    @jax.jit
    def decode(model, ids):
        def step(cache, column):
            ids, position = column
            hidden, cache = model(model.embed(ids[:, None]), position[:, None], cache=cache)
            return cache, model.logits(hidden)[:, 0]

        cache = init_cache(model.config, 2, IDS.shape[1])
        return jax.lax.scan(step, cache, (ids.T, POSITIONS.T))[1].swapaxes(0, 1)

    np.testing.assert_allclose(decode(ours, IDS), want, atol=1e-4)


def test_exports_load_in_transformers(family, tmp_path):
    want, ours = family
    _, params = tree.pure_params(ours)
    export_llm(ours.config, params, tmp_path / "x", dtype="float32", file_bytes=50_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32)
    np.testing.assert_allclose(logits(theirs), want, atol=1e-5)


def test_merged_lora_equals_the_model_that_was_trained(tmp_path):
    build("Llama", {}).save_pretrained(tmp_path / "base")
    config, base = load_llm(tmp_path / "base")
    config = config.__class__(**(vars(config) | {"lora_rank": 3}))
    rng = np.random.default_rng(1)
    wanted = tree.pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))[1]
    lora = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), wanted)
    params = tree.load_flat(lora, tree.flatten(base), strict=False)
    export_llm(config, params, tmp_path / "x", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32)
    want = run(module(config, params))
    np.testing.assert_allclose(logits(theirs), want, atol=1e-4)
    assert np.abs(want - run(module(*load_llm(tmp_path / "base")))).max() > 1


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def interleave(weight, head_dim):
    """The halves of every head woven together, as converters to GGUF do for Llama."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, architecture):
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    tied = config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        weight, name = tensor.numpy(), key
        for theirs, short in GGUF_NAMES.items():
            name = name.replace(theirs, short)
        if architecture == "llama" and ("attn_q" in name or "attn_k" in name):
            weight = interleave(weight, head_dim)
        if not (tied and name == "output.weight"):
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("smollm2", "llama"), ("llama2_linear", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_gguf_equals_transformers(name, architecture, tmp_path):
    model = build(*FAMILIES[name])
    model.save_pretrained(tmp_path)
    write_gguf(tmp_path / "x.gguf", model, architecture)
    assert llm_config(tmp_path / "x.gguf") == llm_config(tmp_path)
    ours = module(*load_llm(tmp_path / "x.gguf"))
    np.testing.assert_allclose(run(ours), logits(model), atol=1e-4)


def test_gguf_of_llama3_tells_its_scaling_by_divisors(tmp_path):
    model = build("Llama", {"rope_parameters": LLAMA3, "head_dim": 64})
    model.save_pretrained(tmp_path)
    write_gguf(tmp_path / "x.gguf", model, "llama")
    assert llm_config(tmp_path / "x.gguf") == llm_config(tmp_path)
    odd = build("Llama", {"rope_parameters": SHORT_LLAMA3, "head_dim": 64})
    write_gguf(tmp_path / "odd.gguf", odd, "llama")
    with pytest.raises(UserError, match=r"rope_freqs of .* are not those of a Llama 3"):
        llm_config(tmp_path / "odd.gguf")
