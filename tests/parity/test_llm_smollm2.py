"""The real SmolLM2 against `transformers` reading the same GGUF file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from data_pipelines import fetch
from slm_jax.interop.llm import load_llm
from slm_jax.models.backbone import Backbone, init_cache
from slm_jax.nn import tree
from slm_jax.tokenizers.text import TextTokenizer

pytestmark = pytest.mark.slow
STEPS = 24
PROMPTS = [
    "The capital of France is",
    "Please enter your 4-digit number, followed by the",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "She opened the door and saw",
    "To make a good cup of tea, you should",
    "In 1969, the first human",
    "Thank you for calling. Your call is",
]
ODD = ["It's 1,250 calls at 5:30pm.\nNew line  two spaces", "naïve 日本 emoji 🙂 DON'T", " 007 "]


def continue_greedily(model, prompts):
    """Our ids [10, STEPS]: one padded prefill, then one column a step."""
    lengths = np.array([len(prompt) for prompt in prompts])
    width = lengths.max()
    ids = np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts])

    @jax.jit
    def run(model):
        positions = jnp.broadcast_to(jnp.arange(width), ids.shape)
        cache = init_cache(model.config, len(prompts), width + STEPS)
        hidden, cache = model(model.embed(ids), positions, cache=cache)
        hidden = hidden[np.arange(len(prompts)), lengths - 1]

        def step(carry, index):
            hidden, cache = carry
            token = jnp.argmax(model.logits(hidden), axis=-1)
            at = (lengths + index)[:, None]
            hidden, cache = model(model.embed(token[:, None]), at, cache=cache)
            return (hidden[:, 0], cache), token

        return jax.lax.scan(step, (hidden, cache), jnp.arange(STEPS))[1].T

    return np.asarray(run(model))


def transformers_model(path):
    """SmolLM2 with the sizes of its published config.json and the weights of the GGUF file."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    read["lm_head.weight"] = read["model.embed_tokens.weight"]
    model.load_state_dict(read)
    return model


def transformers_continues(model, prompts):
    """Ids [10, STEPS] of a batch padded on the left, as `generate` wants it."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    length = {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    out = model.generate(ids, attention_mask=seen, do_sample=False, pad_token_id=0, **length)
    return out[:, width:].numpy()


def test_continues_ten_prompts_as_transformers_does():
    path = fetch.smollm2()
    config, params = load_llm(path)
    graphdef, _ = tree.pure_params(nnx.eval_shape(lambda: Backbone(config, nnx.Rngs(0))))
    tokenizer = TextTokenizer.load(path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    got = continue_greedily(tree.merge(graphdef, params), prompts)
    want = transformers_continues(transformers_model(path), prompts)
    np.testing.assert_array_equal(got, want)
    assert "Paris" in tokenizer.decode(got[0])


def test_ids_are_those_of_transformers():
    path = fetch.smollm2()
    ours = TextTokenizer.load(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in PROMPTS + ODD:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
