"""Our GridLM over the layout of CSM against `CsmForConditionalGeneration` of transformers."""

import functools
import json
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from slm_jax import config
from slm_jax.data.rows import pack_row, stack
from slm_jax.errors import UserError
from slm_jax.interop import csm, grid_weights
from slm_jax.nn import tree

LEVELS, CODES, VOCAB, TEXT, FRAMES, WORDS = 4, 19, 22, 60, 9, 6
BOS, END = 50, 51
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
SIZES = {
    "num_codebooks": LEVELS, "vocab_size": VOCAB, "text_vocab_size": TEXT, "hidden_size": 32,
    "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "codebook_pad_token_id": VOCAB - 1,
    "bos_token_id": BOS, "pad_token_id": 53, "audio_token_id": 53, "audio_eos_token_id": 54,
    # As published, in terms of a context of 1024 (and 16 below): the same waves as 1, 4 and 8192.
    "rope_parameters": ROPE | {"low_freq_factor": 0.125, "high_freq_factor": 0.5,
                               "original_max_position_embeddings": 1024},
}  # fmt: skip
DEPTH = {
    "num_codebooks": LEVELS, "vocab_size": VOCAB, "backbone_hidden_size": 32, "hidden_size": 16,
    "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
    "rope_parameters": ROPE | {"low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125,
                               "original_max_position_embeddings": 16},
}  # fmt: skip
CODEC = {
    "hidden_size": 16, "num_filters": 4, "codebook_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8, "upsample_groups": 16,
}  # fmt: skip
CHANGES = [
    "WIDTH=32", "LAYERS=2", "HEADS=4", "KV_HEADS=2", "HEAD_DIM=8", "MLP_WIDTH=40",
    "DEPTH_WIDTH=16", "DEPTH_LAYERS=2", "DEPTH_HEADS=2", "DEPTH_KV_HEADS=1", "DEPTH_HEAD_DIM=8",
    "DEPTH_MLP_WIDTH=28", f"TEXT_VOCAB={TEXT}", f"BOS={BOS}", f"TEXT_END={END}",
    f"CODEBOOKS={(CODES,) * LEVELS}",
]  # fmt: skip


def read(changes=()):
    return config.load([config.GIN_DIR / "systems" / "csm.gin"], list(changes), root="System")


SYSTEM = read(CHANGES)


def abstract(system):
    return tree.pure_params(nnx.eval_shape(lambda: system.build(nnx.Rngs(0))))


def reference_config(sizes=SIZES, depth=DEPTH):
    return transformers.CsmConfig(
        **sizes, depth_decoder_config=depth, codec_config=CODEC | {"model_type": "mimi"}
    )


@functools.cache
def reference():
    """The torch model, every weight random, of a scale at which nothing is near linear."""
    torch.manual_seed(0)
    model = transformers.CsmForConditionalGeneration(reference_config()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("codec_model."):
                continue
            table = re.search("embed_(text|audio)?_?tokens", name)
            weight.copy_(torch.randn_like(weight) * (1.0 if table else weight.shape[-1] ** -0.5))
            if "norm" in name:
                weight.abs_().add_(0.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("csm")
    reference().save_pretrained(path, max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture(scope="module")
def ours(folder):
    graphdef, like = abstract(SYSTEM)
    return graphdef, csm.load_csm(folder, SYSTEM.model.backbone, SYSTEM.model.depth, like)


def record(seed):
    rng = np.random.default_rng(seed)
    return {
        "text-llama32": SimpleNamespace(values=rng.integers(0, 50, (WORDS, 1)), index=None),
        "mimi": SimpleNamespace(values=rng.integers(0, CODES, (FRAMES, LEVELS)), index=None),
    }


RECORDS = [record(0), record(1)]
GRIDS = [SYSTEM.layout.arrange(x) for x in RECORDS]
BATCH = stack([pack_row(SYSTEM.layout, GRIDS[0].tokens.shape[1], [x], None) for x in RECORDS])


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, batch):
    """Logits of level 0 [B, S, V], and of the others [B, S, K - 1, V], teacher-forced."""
    model = tree.merge(graphdef, params)
    states, _ = model.states(batch)
    above = jnp.stack([model.told(row, batch["targets"][:, row]) for row in model.rows[:-1]], 2)
    flat = states.trunk.reshape(-1, states.trunk.shape[-1])
    levels = jnp.stack(model.depth(flat, above.reshape(len(flat), *above.shape[2:])), 1)
    return model.logits(states, 1), levels.reshape(*above.shape[:3], -1)


def test_logits_of_all_levels_equal_the_reference(ours):
    model = reference()
    content = np.stack([grid.content for grid in GRIDS])
    text = content[:, 0] >= 0
    assert (text.sum(1) == WORDS + 2).all() and (content[:, 1:, -1] == 0).all()
    frames = torch.from_numpy(content[:, 1:].clip(min=0).swapaxes(1, 2)).long()
    labels = frames.masked_fill(torch.from_numpy(text)[..., None], -100)
    with torch.no_grad():
        embedded = torch.where(
            torch.from_numpy(text)[..., None],
            model.embed_text_tokens(torch.from_numpy(content[:, 0]).clamp(min=0).long()),
            model.backbone_model.embed_tokens(frames),
        )
        want = model(inputs_embeds=embedded, labels=labels)
    first, levels = run(*ours, BATCH)
    assert want.logits.std() > 0.3 and want.depth_decoder_logits.std() > 0.3
    codes = want.logits[:, :-1, :CODES].numpy()
    np.testing.assert_allclose(first, codes, atol=1e-4)
    # Theirs are of the frames alone, in order; ours of the columns before them.
    depth = want.depth_decoder_logits[..., :CODES].numpy()  # [B * (FRAMES + 1), K - 1, V]
    found = np.asarray(levels)[:, WORDS + 1 :].reshape(-1, LEVELS - 1, CODES)
    np.testing.assert_allclose(found, depth, atol=1e-4)


def test_names_and_shapes_at_full_size(tmp_path):
    """`CsmConfig` is the size of sesame/csm-1b by default, but for the rotary scaling."""
    low = {"low_freq_factor": 0.125, "high_freq_factor": 0.5}
    full = transformers.CsmConfig(
        codec_config=CODEC | {"model_type": "mimi"},
        rope_parameters=ROPE | low | {"original_max_position_embeddings": 1024},
        depth_decoder_config={"rope_parameters": DEPTH["rope_parameters"]},
    )
    with torch.device("meta"):
        theirs = transformers.CsmForConditionalGeneration(full)
    full.save_pretrained(tmp_path)
    sizes, system = csm.csm_sizes(tmp_path), read()
    grid_weights.agree("backbone", sizes.backbone, system.model.backbone)
    grid_weights.agree("depth", sizes.depth, system.model.depth)
    state = {n: x for n, x in theirs.state_dict().items() if not n.startswith("codec_model.")}
    like = abstract(system)[1]

    def shapes(state):
        arrays = {name: np.broadcast_to(np.int8(0), tuple(x.shape)) for name, x in state.items()}
        return {name: x.shape for name, x in csm.divided(arrays, sizes).items()}

    table = csm.table(sizes, like)
    grid_weights.check(table, shapes(state), like)
    for name in (csm._TABLE, csm._SHARED):  # a file may have one of them alone
        grid_weights.check(table, shapes({n: x for n, x in state.items() if n != name}), like)
    assert {row.theirs for row in table if row.total} >= {"audio.31", "lm_head.weight"}
    used = sum(math.prod(x.shape) for x in tree.flatten(like).values())
    shared = state[csm._SHARED].numel()
    spare = (2051 - 2048) * (2048 + 31 * 1024)  # ids of heads that we do not say
    spare += (2051 - 2050) * 32 * 2048  # and of tables
    assert used + spare == sum(x.numel() for x in state.values()) - shared

    bad = shapes(state) | {"lm_head.weight": (2052, 2048)}
    del bad["depth_decoder.codebooks_head.30"]
    with pytest.raises(UserError) as error:
        grid_weights.check(table, bad, like)
    assert "missing: depth_decoder.codebooks_head.30;" in str(error.value)
    assert "misshapen: lm_head.weight (2052, 2048), wanted (2051, 2048)" in str(error.value)


def test_bad_folders_are_refused(folder, tmp_path):
    model, like = SYSTEM.model, abstract(SYSTEM)[1]
    fields = json.loads((folder / "config.json").read_text())

    def load(**changes):
        (tmp_path / "config.json").write_text(json.dumps(fields | changes))
        return csm.load_csm(tmp_path, model.backbone, model.depth, like)

    with pytest.raises(UserError, match=r"config\.json does not exist"):
        csm.load_csm(tmp_path, model.backbone, model.depth, like)
    with pytest.raises(UserError, match="of type mimi, not csm"):
        load(model_type="mimi")
    with pytest.raises(UserError, match="attention_bias"):
        load(attention_bias=True)
    with pytest.raises(UserError, match=r"published backbone .* layers 3, wanted 2"):
        load(num_hidden_layers=3)
    with pytest.raises(UserError, match=r"published depth transformer .* mlp_width 30, wanted 28"):
        load(depth_decoder_config=fields["depth_decoder_config"] | {"intermediate_size": 30})
    with pytest.raises(UserError, match="holds no "):
        load()
    for file in folder.glob("*.safetensors"):
        kept = {name: x for name, x in load_file(file).items() if name != "lm_head.weight"}
        save_file(kept, tmp_path / file.name)
    with pytest.raises(UserError, match=r"missing: lm_head\.weight\n"):
        load()
