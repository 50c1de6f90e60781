"""Our GridLM over the layout of Moshi against `LMModel` and `LMGen` of moshi, and transformers."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from moshi_models import (
    CARD,
    FIELDS,
    OWN,
    TEXT,
    USER,
    WINDOW,
    lm,
    loaders,
    of_transformers,
    published,
    reference,
)
from safetensors.torch import save_file

from slm_jax import config
from slm_jax.data.rows import pack_row, stack
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.samplers import Sampling
from slm_jax.errors import UserError
from slm_jax.interop import grid_weights, moshi
from slm_jax.nn import tree

RATE, FRAMES = 12.5, 17
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


def test_greedy_streaming_equals_lmgen(ours):
    """The user's frames come one by one; LMGen takes the first twice, for its INIT column."""
    frames, batch = 60, 4
    users = [record(seed, frames)["mimi-user"] for seed in range(batch)]
    given = torch.from_numpy(np.stack([user.values.T for user in users]))
    gen, made = lm.LMGen(reference(), use_sampling=False, check=True), []
    with gen.streaming(batch):
        for frame in (0, *range(frames)):
            made.append(gen.step(given[..., frame : frame + 1]))
    want = torch.cat(made[1:], -1).numpy()  # [B, 1 + OWN, frames]
    engine = GridEngine(tree.merge(*ours), SYSTEM.layout, sampling=Sampling(), room=frames + 2)
    decoded = engine.generate(
        [{"mimi-user": user} for user in users], lengths={"mimi": [frames] * batch}
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


def test_logits_equal_transformers(ours):
    """Its pieces on delayed columns: its own training pass delays nothing. It has no window."""
    model = of_transformers()
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
    assert moshi.PUBLISHED.items() <= loaders._lm_kwargs.items()
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
    unnamed = {name: value for name, value in FIELDS.items() if name != "norm"}
    (tmp_path / "config.json").write_text(json.dumps(unnamed))
    with pytest.raises(UserError, match="lacks 'norm'"):
        moshi.moshi_sizes(tmp_path)
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
