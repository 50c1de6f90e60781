"""Our GridLM with a second transformer against Qwen2.5-Omni's Thinker and Talker."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

from slm_jax import config
from slm_jax.data.rows import pack_row, stack
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.samplers import Sampling
from slm_jax.errors import UserError
from slm_jax.interop import grid_weights, qwen_talker
from slm_jax.nn import tree

TEXT, CODES, VOCAB = 60, 24, 34
SPEAKER, TEXT_EOS, TEXT_PAD, LLM_INIT, LLM_EOS = 50, 51, 52, 53, 54
PAD, BOS, EOS, MASK = 28, 29, 30, 31
WORDS, FRAMES = 6, 14
ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 1, 1]}
THINKER = {
    "vocab_size": TEXT, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": ROPE,
    "tie_word_embeddings": False,
}  # fmt: skip
TALKER = {
    "vocab_size": VOCAB, "embedding_size": 24, "hidden_size": 16, "intermediate_size": 36,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "rope_parameters": ROPE, "tts_text_end_token_id": TEXT_EOS, "tts_text_pad_token_id": TEXT_PAD,
    "tts_codec_start_token_id": BOS, "tts_codec_end_token_id": EOS, "tts_codec_pad_token_id": PAD,
    "tts_codec_mask_token_id": MASK,
}  # fmt: skip
CHANGES = [
    "WIDTH=24", "LAYERS=2", "HEADS=3", "KV_HEADS=1", "HEAD_DIM=8", "MLP_WIDTH=40",
    "SECOND_WIDTH=16", "SECOND_LAYERS=2", "SECOND_HEADS=4", "SECOND_KV_HEADS=2",
    "SECOND_HEAD_DIM=8", "SECOND_MLP_WIDTH=36", f"TEXT_VOCAB={TEXT}", f"SPEAKER={SPEAKER}",
    f"TEXT_EOS={TEXT_EOS}", f"TEXT_PAD={TEXT_PAD}", f"LLM_INIT={LLM_INIT}", f"LLM_EOS={LLM_EOS}",
    f"VOCAB={CODES}", f"CODEC_PAD={PAD}", f"CODEC_BOS={BOS}", f"CODEC_EOS={EOS}",
]  # fmt: skip


def read(changes=()):
    file = config.GIN_DIR / "systems" / "qwen25_omni_talker.gin"
    return config.load([file], list(changes), root="System")


SYSTEM = read(CHANGES)


def abstract(system):
    return tree.pure_params(nnx.eval_shape(lambda: system.build(nnx.Rngs(0))))


@functools.cache
def reference():
    """The text LLM with its head, and the Talker, every weight random."""
    torch.manual_seed(0)
    text = transformers.Qwen2_5OmniThinkerConfig(text_config=THINKER).text_config
    thinker = torch.nn.Module()
    thinker.model = omni.Qwen2_5OmniThinkerTextModel(text)
    thinker.lm_head = torch.nn.Linear(24, TEXT, bias=False)
    sizes = omni.Qwen2_5OmniTalkerConfig(**TALKER)
    talker = omni.Qwen2_5OmniTalkerForConditionalGeneration(sizes)
    both = torch.nn.ModuleDict({"thinker": thinker, "talker": talker}).eval()
    with torch.no_grad():
        for name, weight in both.named_parameters():
            scale = 1.0 if "embed_tokens" in name else 1.5 * weight.shape[-1] ** -0.5
            weight.copy_(torch.randn_like(weight) * scale)
            if "norm" in name:
                weight.abs_().add_(0.5)
    return both


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen_talker")
    state = {name: x.contiguous() for name, x in reference().state_dict().items()}
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, path / f"model-{number}.safetensors")
    other = {f"{prefix}weight": torch.zeros(2) for prefix in qwen_talker.OTHERS}
    save_file(other, path / "others.safetensors")
    fields = {"model_type": "qwen2_5_omni", "talker_config": TALKER | {"rms_norm_eps": 1e-6},
              "thinker_config": {"text_config": THINKER | {"rms_norm_eps": 1e-6}}}  # fmt: skip
    (path / "config.json").write_text(json.dumps(fields))
    return path


@pytest.fixture(scope="module")
def ours(folder):
    graphdef, like = abstract(SYSTEM)
    model = SYSTEM.model
    return graphdef, qwen_talker.load_talker(folder, model.backbone, model.second.trunk, like)


def record(seed):
    rng = np.random.default_rng(seed)
    return {
        "text-qwen25": SimpleNamespace(values=rng.integers(0, 50, (WORDS, 1)), index=None),
        "qwen25-codec": SimpleNamespace(values=rng.integers(0, CODES, (FRAMES, 1)), index=None),
    }


RECORDS = [record(0), record(1)]
GRIDS = [SYSTEM.layout.arrange(x) for x in RECORDS]
BATCH = stack([pack_row(SYSTEM.layout, GRIDS[0].tokens.shape[1], [x], None) for x in RECORDS])


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, batch):
    """Logits of the codec and of the text LLM, [B, S, V] each."""
    model = tree.merge(graphdef, params)
    states, text = model.states(batch)
    return model.logits(states, 1), model.backbone.logits(text)


def replies(tokens):
    """[B, T, D] of the Thinker: the state after each id of a text, and the embedded id."""
    model = reference()["thinker"].model
    found = model(input_ids=tokens, output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)  # what `generate` takes
    return found.last_hidden_state, model.embed_tokens(tokens)


@torch.no_grad()
def text_part():
    """What stands in the columns beside the codec: marks are embedded alone."""
    upstream = torch.from_numpy(BATCH["upstream/tokens"][:, 0]).long()
    hidden, embedded = replies(upstream)
    table = reference()["thinker"].model.embed_tokens
    said = (hidden + embedded)[:, 1 : 1 + WORDS]
    speaker, eos, pad = (table(torch.full((2, 1), id)) for id in (SPEAKER, TEXT_EOS, TEXT_PAD))
    return hidden, speaker, said, eos, pad


def test_logits_equal_the_reference(ours):
    both = reference()
    hidden, speaker, said, eos, pad = text_part()
    columns = BATCH["tokens"].shape[-1]
    assert columns > WORDS + 5
    beside = torch.cat([speaker, said, eos, pad.expand(-1, columns - WORDS - 2, -1)], 1)
    with torch.no_grad():
        codec = both["talker"].model.embed_tokens(torch.from_numpy(BATCH["tokens"][:, 1]).long())
        want = both["talker"](inputs_embeds=codec + beside).logits
        text = both["thinker"].lm_head(hidden)
    found, llm = run(*ours, BATCH)
    assert want.std() > 0.3
    np.testing.assert_allclose(found, want[..., : EOS + 1], atol=1e-4)
    read = slice(WORDS + 1)  # beyond stands padding
    np.testing.assert_allclose(llm[:, read], text[:, read], atol=1e-4)


def test_positions_of_all_axes_count_columns():
    ids = torch.tensor([[1, 2, 3, SPEAKER, 4]])
    positions, _ = reference()["talker"].get_rope_index(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(positions, torch.arange(5).expand(3, 1, 5))


@torch.no_grad()
def theirs(frames):
    """[B, frames], greedy with a cache, as the Talker's `generate` goes through its forward.

    `generate` itself drops a mask without padding (transformers 5.24), and only with a mask adds
    the codec's embeddings to the two columns before the first code.
    """
    talker = reference()["talker"]
    _, speaker, said, eos, pad = text_part()
    first = talker.model.embed_tokens(torch.tensor([[PAD, BOS]])) + torch.cat(
        [speaker, said[:, :1]], 1
    )
    reply = torch.cat([said[:, 1:], eos, pad], 1)
    found, made = talker(inputs_embeds=first, thinker_reply_part=reply, use_cache=True), []
    for _ in range(frames):
        made.append(found.logits[:, -1:, :CODES].argmax(-1))
        found = talker(
            input_ids=made[-1],
            thinker_reply_part=found.thinker_reply_part,
            cache=found.cache,
            use_cache=True,
        )
    return torch.cat(made, 1).numpy()


def test_greedy_decoding_equals_the_reference(ours):
    frames = 50
    engine = GridEngine(tree.merge(*ours), SYSTEM.layout, sampling=Sampling(), room=frames + 4)
    decoded = engine.generate(
        [{"text-qwen25": x["text-qwen25"]} for x in RECORDS],
        lengths={"qwen25-codec": [frames] * 2},
    )
    for row, found in zip(theirs(frames), decoded, strict=True):
        assert len(np.unique(row)) > 5
        codes = SYSTEM.layout.restore(found.grid)["qwen25-codec"].values[:, 0]
        np.testing.assert_array_equal(codes, row)


@functools.cache
def full_size():
    """Sizes of the 7B model; those of its Talker are not the defaults."""
    sizes = transformers.Qwen2_5OmniConfig(
        thinker_config={"text_config": {"tie_word_embeddings": False}},
        talker_config={
            "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 12,
        },
    )  # fmt: skip
    with torch.device("meta"):
        return sizes, transformers.Qwen2_5OmniForConditionalGeneration(sizes)


def test_names_and_shapes_at_full_size(tmp_path):
    full, theirs = full_size()
    full.save_pretrained(tmp_path)
    sizes, system = qwen_talker.talker_sizes(tmp_path), read()
    grid_weights.agree("Thinker", sizes.thinker, system.model.backbone)
    grid_weights.agree("Talker", sizes.talker, system.model.second.trunk)
    assert sizes.width == system.model.second.width
    like = abstract(system)[1]
    state = qwen_talker.chosen(theirs.state_dict())
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    table = qwen_talker.table(sizes, like)
    grid_weights.check(table, shapes, like)
    used = sum(math.prod(x.shape) for x in tree.flatten(like).values())
    spare = (8448 - 8295) * (3584 + 896)  # ids of the codec that nothing says
    assert used + spare == sum(x.numel() for x in state.values())

    lost, odd = "talker.model.layers.23.self_attn.q_proj.bias", "talker.codec_head.weight"
    shapes |= {odd: (8448, 3584), "talker.model.layers.24.mlp.up_proj.weight": (18944, 896)}
    del shapes[lost]
    with pytest.raises(UserError) as error:
        grid_weights.check(table, shapes, like)
    for part in (f"missing: {lost};", "unexpected: talker.model.layers.24.mlp.up_proj.weight;",
                 f"misshapen: {odd} (8448, 3584), wanted (8448, 896)"):  # fmt: skip
        assert part in str(error.value)


def test_bad_folders_are_refused(folder, tmp_path):
    model, like = SYSTEM.model, abstract(SYSTEM)[1]
    fields = json.loads((folder / "config.json").read_text())

    def load(**changes):
        (tmp_path / "config.json").write_text(json.dumps(fields | changes))
        return qwen_talker.load_talker(tmp_path, model.backbone, model.second.trunk, like)

    with pytest.raises(UserError, match="of type qwen2, not qwen2_5_omni"):
        load(model_type="qwen2")
    with pytest.raises(UserError, match=r"published Talker .* heads 2, wanted 4"):
        load(talker_config=fields["talker_config"] | {"num_attention_heads": 2})
    with pytest.raises(UserError, match=r"published Thinker .* mlp_width 44, wanted 40"):
        load(thinker_config={"text_config": fields["thinker_config"]["text_config"] | {
            "intermediate_size": 44}})  # fmt: skip
    for file in folder.glob("*.safetensors"):
        kept = {n: x for n, x in load_file(file).items() if n != "talker.codec_head.weight"}
        save_file(kept, tmp_path / file.name)
    with pytest.raises(UserError, match=r"missing: talker\.codec_head\.weight\n"):
        load()
