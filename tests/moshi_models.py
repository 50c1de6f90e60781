"""A tiny Moshi of random weights, in the package moshi and in transformers."""

import functools
import re

import moshi_package
import torch
import transformers

moshi_package.make_importable()

from moshi.models import lm, loaders  # noqa: E402

OWN, USER, CARD, TEXT = 3, 3, 24, 40
WINDOW = 7
FIELDS = {
    **loaders._lm_kwargs,
    "dim": 32, "text_card": TEXT, "n_q": OWN + USER, "dep_q": OWN, "card": CARD, "num_heads": 4,
    "num_layers": 2, "context": WINDOW, "depformer_dim": 16, "depformer_dim_feedforward": 66,
    "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_context": OWN,
    "delays": [0, 0, 1, 1, 0, 1, 1],
}  # fmt: skip


@functools.cache
def reference():
    """The torch model, every weight random, of a scale at which nothing is near linear."""
    model = lm.LMModel(**FIELDS).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 1.0 if re.search(r"emb\.", name) else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            if name.endswith("alpha"):
                weight.abs_().add_(0.5)
    return model


def published(state):
    """As the older files have them: attention stacked over steps, before the load hook."""
    found, stacked = {}, {}
    for name, value in state.items():
        if match := re.match(r"(.*self_attn\.(in|out)_proj)s\.\d+\.weight", name):
            last = "_weight" if match[2] == "in" else ".weight"
            stacked.setdefault(match[1] + last, []).append(value)
        else:
            found[name] = value
    return found | {name: torch.cat(parts) for name, parts in stacked.items()}


def _halves(weight, heads):
    """Rows of rotating pairs (2i, 2i + 1) as transformers has them."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _renamed(state):
    """The weights of moshi by the names of `MoshiForConditionalGeneration`."""
    found = {
        "decoder.model.embed_tokens.weight": state["text_emb.weight"],
        "decoder.model.norm.weight": state["out_norm.alpha"].flatten(),
        "decoder.lm_head.weight": state["text_linear.weight"],
        "depth_decoder.text_embed_tokens.weight": state["depformer_text_emb.weight"],
    }
    for k in range(OWN + USER):
        found[f"embed_tokens.{k}.weight"] = state[f"emb.{k}.weight"]
    for k in range(OWN - 1):
        found[f"depth_decoder.embed_tokens.{k}.weight"] = state[f"depformer_emb.{k}.weight"]

    def steps(name):
        return torch.stack([state[name.format(k)] for k in range(OWN)])

    found["depth_decoder.input_projections.weight"] = steps("depformer_in.{}.weight")
    found["depth_decoder.lm_heads.weight"] = steps("linears.{}.weight")
    for n in range(2):
        theirs, main = f"transformer.layers.{n}.", f"decoder.model.layers.{n}."
        q, k, v = state[f"{theirs}self_attn.in_projs.0.weight"].chunk(3)
        for name, part in (("q", _halves(q, 4)), ("k", _halves(k, 4)), ("v", v)):
            found[f"{main}self_attn.{name}_proj.linear.weight"] = part
        out = state[f"{theirs}self_attn.out_projs.0.weight"]
        found[f"{main}self_attn.o_proj.linear.weight"] = out
        for number, way in ((1, "in"), (2, "out")):
            found[f"{main}mlp.fc{number}.weight"] = state[f"{theirs}gating.linear_{way}.weight"]
        theirs, depth = f"depformer.layers.{n}.", f"depth_decoder.layers.{n}."
        parts = steps(f"{theirs}self_attn.in_projs.{{}}.weight").chunk(3, 1)
        for name, part in zip("qkv", parts, strict=True):
            found[f"{depth}self_attn.{name}_proj.linear.weight"] = part
        out = steps(f"{theirs}self_attn.out_projs.{{}}.weight")
        found[f"{depth}self_attn.o_proj.linear.weight"] = out
        for number, way in ((1, "in"), (2, "out")):
            fc = steps(f"{theirs}gating.{{}}.linear_{way}.weight")
            found[f"{depth}mlp.fc{number}.weight"] = fc
        for ours, parent in ((main, "transformer"), (depth, "depformer")):
            for name, norm in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
                alpha = state[f"{parent}.layers.{n}.{norm}.alpha"]
                found[f"{ours}{name}.weight"] = alpha.flatten()
    return found


@functools.cache
def of_transformers():
    """The same weights in transformers; its depth decoder sees what is to come unless SDPA."""
    sizes = transformers.MoshiConfig(
        vocab_size=TEXT, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=176,
        audio_vocab_size=CARD, num_codebooks=OWN, sliding_window=WINDOW, rms_norm_eps=1e-8,
        audio_encoder_config=transformers.MimiConfig(
            hidden_size=16, num_filters=4, codebook_size=32, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, codebook_dim=8,
            vector_quantization_hidden_dimension=8, upsample_groups=16,
        ),
        depth_decoder_config={
            "vocab_size": TEXT, "hidden_size": 16, "input_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "ffn_dim": 88, "audio_vocab_size": CARD,
            "num_codebooks": OWN, "rms_norm_eps": 1e-8,
        },
        attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.MoshiForConditionalGeneration(sizes).eval()
    found = model.load_state_dict(_renamed(reference().state_dict()), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("audio_encoder.") for name in found.missing_keys)
    return model
