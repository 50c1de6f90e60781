"""Our GridLM over the layout of Moshi against `LMModel` and `LMGen` of moshi, and transformers."""

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
from moshi.models import lm, loaders
from safetensors.torch import save_file

from slm_jax import config
from slm_jax.data.rows import pack_row, stack
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.samplers import Sampling
from slm_jax.errors import UserError
from slm_jax.interop import grid_weights, moshi
from slm_jax.nn import tree

OWN, USER, CARD, TEXT = 3, 3, 24, 40
RATE, FRAMES, WINDOW = 12.5, 17, 7
FIELDS = {
    **loaders._lm_kwargs,
    "dim": 32, "text_card": TEXT, "n_q": OWN + USER, "dep_q": OWN, "card": CARD, "num_heads": 4,
    "num_layers": 2, "context": WINDOW, "depformer_dim": 16, "depformer_dim_feedforward": 66,
    "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_context": OWN,
    "delays": [0, 0, 1, 1, 0, 1, 1],
}  # fmt: skip
CHANGES = [
    "WIDTH=32", "LAYERS=2", "HEADS=4", "KV_HEADS=4", "HEAD_DIM=8", "MLP_WIDTH=88",
    f"backbone/BackboneConfig.window={WINDOW}", "DEPTH_WIDTH=16", "DEPTH_LAYERS=2",
    "DEPTH_HEADS=2", "DEPTH_KV_HEADS=2", "DEPTH_HEAD_DIM=8", "DEPTH_MLP_WIDTH=44",
    f"TEXT_VOCAB={TEXT}", f"TEXT_INIT={TEXT}", f"TABLE={TEXT + 1}",
    f"CODEBOOKS={(CARD,) * OWN}", f"AUDIO_INIT={CARD}", "DELAYS=(0, 1, 1)",
    "LEVEL_WEIGHTS=(100.0, 1.0, 1.0)", "TEXT_MASKED=0.0",
]  # fmt: skip


def read(changes=()):
    return config.load([config.GIN_DIR / "systems" / "moshi.gin"], list(changes), root="System")


SYSTEM = read(CHANGES)


def abstract(system):
    return tree.pure_params(nnx.eval_shape(lambda: system.build(nnx.Rngs(0))))


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("moshi")
    save_file(published(reference().state_dict()), path / "model.safetensors")
    save_file({"other": torch.zeros(2)}, path / "tokenizer-mimi.safetensors")
    (path / "config.json").write_text(json.dumps(FIELDS))
    return path


@pytest.fixture(scope="module")
def ours(folder):
    graphdef, like = abstract(SYSTEM)
    model = SYSTEM.model
    return graphdef, moshi.load_moshi(folder, model.backbone, model.depth, like)


def record(seed, frames=FRAMES):
    """Own and user's codes, and words at random frames."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.choice(frames, 5, replace=False)) / RATE + 0.01
    counts = rng.integers(1, 3, 5)
    own, user = (rng.integers(0, CARD, (frames, levels)) for levels in (OWN, USER))
    item = functools.partial(SimpleNamespace, index=None)
    return {
        "words": SimpleNamespace(
            words=[SimpleNamespace(text="a", start=x, end=x + 0.05) for x in starts]
        ),
        "text-helium": SimpleNamespace(
            values=rng.integers(5, TEXT, (counts.sum(), 1)), index=np.repeat(np.arange(5), counts)
        ),
        "mimi": item(values=own),
        "mimi-user": item(values=user),
    }


RECORDS = [record(0), record(1)]
BATCH = stack([pack_row(SYSTEM.layout, FRAMES + 3, [x], None) for x in RECORDS])


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, batch):
    """Logits of the text [B, S, V], and of all levels [B, K, S, V], teacher-forced."""
    model = tree.merge(graphdef, params)
    states, _ = model.states(batch)
    above = batch["targets"][:, :OWN].swapaxes(1, 2).reshape(-1, OWN)
    depth = model.depth(states.trunk.reshape(len(above), -1), above)
    levels = jnp.stack(depth, 1).reshape(*states.trunk.shape[:2], OWN, -1)
    return model.logits(states, 0), levels.swapaxes(1, 2)


def test_logits_of_text_and_levels_equal_moshi(ours):
    """Theirs are of frames, ours of columns: each level's are as late as the layout delays it."""
    codes = [
        np.concatenate([SYSTEM.layout.arrange(x).content[:1, 1:], x["mimi"].values.T,
                        x["mimi-user"].values.T])
        for x in RECORDS
    ]  # fmt: skip
    with torch.no_grad():
        want = reference()(torch.from_numpy(np.stack(codes)).long())
    text, levels = run(*ours, BATCH)
    assert want.text_logits.std() > 0.3
    np.testing.assert_allclose(text[:, :FRAMES], want.text_logits[:, 0], atol=1e-4)
    assert set(codes[0][0]) >= {0, 3}  # EPAD, PAD
    for level, delay in enumerate(FIELDS["delays"][1 : 1 + OWN]):
        valid = want.logits[:, level, : FRAMES - delay]
        assert valid.std() > 0.3
        np.testing.assert_allclose(levels[:, level, delay:FRAMES], valid, atol=1e-4)


def test_an_empty_cell_is_a_zero_vector_as_in_moshi(ours):
    tokens = np.random.default_rng(5).integers(0, CARD, (2, 1 + OWN + USER, 9))
    tokens[0, 0, 3], tokens[1, 2, 4], tokens[0, 5] = -1, -1, -1
    places = np.tile(np.arange(9), (2, 1))
    batch = {
        "tokens": tokens,
        "targets": tokens,
        "positions": places,
        "segment_ids": places * 0 + 1,
    }
    with torch.no_grad():
        hidden, want = reference().forward_text(torch.from_numpy(tokens))
        depth = reference().forward_depformer_training(torch.from_numpy(tokens), hidden)
    text, levels = run(*ours, batch)
    np.testing.assert_allclose(text, want[:, 0], atol=1e-4)
    np.testing.assert_allclose(levels, depth, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_streaming_equals_lmgen(ours, seed):
    """The user's frames come one by one; LMGen takes the first twice, for its INIT column."""
    frames, batch = 60, 2
    users = [record(10 * seed + b, frames)["mimi-user"] for b in range(batch)]
    given = torch.from_numpy(np.stack([user.values.T for user in users]))
    gen, made = lm.LMGen(reference(), use_sampling=False, check=True), []
    with gen.streaming(batch):
        for frame in (0, *range(frames)):
            made.append(gen.step(given[..., frame : frame + 1]))
    want = torch.cat(made[1:], -1).numpy()  # [B, 1 + OWN, frames]
    engine = GridEngine(tree.merge(*ours), SYSTEM.layout, sampling=Sampling(), room=frames + 2)
    decoded = engine.generate(
        [{"mimi-user": user} for user in users], lengths={"mimi": [frames] * 2}
    )
    for b, found in enumerate(decoded):
        content = found.grid.content[:, 1:]
        assert content.shape[1] == frames > 50
        for row, delay in enumerate(FIELDS["delays"][: 1 + OWN]):
            assert len(np.unique(want[b, row])) > 5
            np.testing.assert_array_equal(content[row, delay:], want[b, row, : frames - delay])
        for row, delay in enumerate(FIELDS["delays"][1 + OWN :]):
            np.testing.assert_array_equal(
                content[1 + OWN + row, delay:], users[b].values[: frames - delay, row]
            )


def halves(weight, heads):
    """Rows of rotating pairs (2i, 2i + 1) as transformers has them."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def of_transformers(state):
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
        for name, part in (("q", halves(q, 4)), ("k", halves(k, 4)), ("v", v)):
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
def of_hugging_face():
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
    found = model.load_state_dict(of_transformers(reference().state_dict()), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("audio_encoder.") for name in found.missing_keys)
    return model


def test_logits_equal_transformers(ours):
    """Its pieces on delayed columns: its own training pass delays nothing. It has no window."""
    model = of_hugging_face()
    columns = np.stack([SYSTEM.layout.arrange(x).content for x in RECORDS])
    grid = torch.from_numpy(columns[..., : WINDOW + 1]).long()
    with torch.no_grad():
        tables = [model.decoder.model.embed_tokens, *model.embed_tokens]
        x = sum(table(grid[:, k, :-1]) for k, table in enumerate(tables))
        hidden = model.decoder.model(inputs_embeds=x).last_hidden_state
        want = model.decoder.lm_head(hidden)
        depth = model.depth_decoder(
            input_ids=grid[:, :OWN, 1:].transpose(1, 2).flatten(0, 1),
            last_hidden_state=hidden.flatten(0, 1)[:, None],
        ).logits.unflatten(0, (2, WINDOW))
    text, levels = run(*ours, BATCH)
    np.testing.assert_allclose(text[:, :WINDOW], want, atol=1e-4)
    np.testing.assert_allclose(levels[:, :, :WINDOW], depth.transpose(1, 2), atol=1e-4)


def shapes_of(model):
    """The tensors of a model as arrays without memory."""
    state = model.state_dict()
    return {name: np.broadcast_to(np.int8(0), tuple(x.shape)) for name, x in state.items()}


@functools.cache
def full_size():
    return lm.LMModel(**loaders._lm_kwargs, device="meta", dtype=torch.bfloat16)


def test_names_and_shapes_at_full_size(tmp_path):
    sizes, system = moshi.moshi_sizes(tmp_path), read()
    model, like = system.model, abstract(system)[1]
    grid_weights.agree("backbone", sizes.backbone, model.backbone)
    grid_weights.agree("depth", sizes.depth, model.depth)
    delays = [row.delay for row in system.layout.rows]
    assert tuple(delays) == sizes.delays == tuple(loaders._lm_kwargs["delays"])
    tensors = moshi.divided(shapes_of(full_size()), sizes.predicted)
    shapes = {name: x.shape for name, x in tensors.items()}
    grid_weights.check(moshi.table(sizes), shapes, like)
    unused = model.backbone.width  # our head has a column for INIT, which is never said
    count = sum(math.prod(x.shape) for x in tree.flatten(like).values())
    assert count - unused == sum(x.numel() for x in full_size().parameters())

    lost, odd = "depformer.layers.5.gating.7.linear_out.weight", "emb.15.weight"
    shapes |= {odd: (2048, 4096), "emb.16.weight": (2049, 4096)}
    del shapes[lost]
    with pytest.raises(UserError) as error:
        grid_weights.check(moshi.table(sizes), shapes, like)
    for part in (f"missing: {lost};", "unexpected: emb.16.weight;",
                 f"misshapen: {odd} (2048, 4096), wanted (2049, 4096)"):  # fmt: skip
        assert part in str(error.value)


def test_both_forms_of_the_names_are_read(folder, ours, tmp_path):
    save_file({k: v.contiguous() for k, v in reference().state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    model = SYSTEM.model
    params = moshi.load_moshi(tmp_path, model.backbone, model.depth, abstract(SYSTEM)[1])
    jax.tree.map(np.testing.assert_array_equal, params, ours[1])


def test_bad_folders_are_refused(folder, tmp_path):
    model, like = SYSTEM.model, abstract(SYSTEM)[1]

    def load(**changes):
        (tmp_path / "config.json").write_text(json.dumps(FIELDS | changes))
        return moshi.load_moshi(tmp_path, model.backbone, model.depth, like)

    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load()
    with pytest.raises(UserError, match="window 9, wanted 7"):
        load(context=9)
    with pytest.raises(UserError, match="layers 3, wanted 2"):
        load(depformer_num_layers=3)
    with pytest.raises(UserError, match='depformer_pos_emb = "sin" is not supported'):
        load(depformer_pos_emb="sin")
    with pytest.raises(UserError, match="of type mimi, not moshi"):
        load(model_type="mimi")
    state = published(reference().state_dict())
    del state["emb.4.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: emb\.4\.weight"):
        load()
    with pytest.raises(UserError, match=r"width 4096, wanted 32"):
        (tmp_path / "config.json").unlink()
        moshi.load_moshi(tmp_path, model.backbone, model.depth, like)
