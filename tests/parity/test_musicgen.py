"""Our decoder with cross-attention, and our delays, against MusicGen of transformers."""

import functools
import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.interop import grid_weights, musicgen
from slm_jax.models.cross_decoder import CrossDecoder
from slm_jax.nn import tree

K, V, WIDTH, TEXT = 4, 19, 24, 20
COLUMNS, WORDS = 13, 6
CODEC = "encodec-32k"
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V + 1, (2, K, COLUMNS))
TOKENS = RNG.integers(1, 30, (2, WORDS))
MASKS = {
    "all": np.ones((2, WORDS), int),
    "ragged": np.array([[1] * 4 + [0] * 2, [1] * 6]),
    "no_text": np.array([[0] * 6, [1] * 5 + [0]]),
}


def reference_config(**decoder):
    """As published but for the sizes."""
    return transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(
            vocab_size=30, d_model=TEXT, d_kv=5, d_ff=16, num_layers=1, num_heads=2
        ),
        audio_encoder=transformers.EncodecConfig(
            num_filters=4, upsampling_ratios=[4, 3], codebook_size=16, num_residual_layers=1
        ),
        decoder=transformers.MusicgenDecoderConfig(
            **{
                "vocab_size": V,
                "hidden_size": WIDTH,
                "ffn_dim": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "num_codebooks": K,
                "pad_token_id": V,
                "bos_token_id": V,
            }
            | decoder
        ),
    )


@functools.cache
def reference():
    """The torch model, every weight random: when new, some are zeros or ones."""
    torch.manual_seed(0)
    model = transformers.MusicgenForConditionalGeneration(reference_config()).eval()
    with torch.no_grad():
        for name, weight in (
            *model.decoder.named_parameters(),
            *model.enc_to_dec_proj.named_parameters(),
        ):
            weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in name))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("musicgen")
    reference().save_pretrained(path, max_shard_size="30KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def system(
    codes=V, levels=K, delays=(0, 1, 2, 3), text=TEXT, width=WIDTH, layers=2, heads=3, mlp=40
):
    """Of gin/systems, with a small text LLM in T5's place."""
    changes = [
        f"WIDTH={text}", "LAYERS=1", "HEADS=1", "KV_HEADS=1", f"HEAD_DIM={text}", "MLP_WIDTH=8",
        f"SECOND_WIDTH={width}", f"SECOND_LAYERS={layers}", f"SECOND_HEADS={heads}",
        f"SECOND_MLP_WIDTH={mlp}", f"CODEBOOKS={(codes,) * levels}", f"INIT={codes}",
        f"DELAYS={delays}", f"TABLES={tuple(range(1, levels + 1))}", "END='extend'",
    ]  # fmt: skip
    return config.load([config.GIN_DIR / "systems" / "musicgen.gin"], changes, root="System")


def abstract(system):
    """Parameters of the model."""
    return tree.pure_params(nnx.eval_shape(lambda: system.build(nnx.Rngs(0))))[1]


def load(folder, system, dtype="float32"):
    decoder = system.model.second.trunk
    return musicgen.load_musicgen(folder, decoder, abstract(system), dtype)


@pytest.fixture(scope="module")
def ours(folder):
    """The decoder, and all parameters."""
    decoder = system().model.second.trunk
    graphdef, _ = tree.pure_params(nnx.eval_shape(lambda: CrossDecoder(decoder, nnx.Rngs(0))))
    return graphdef, load(folder, system())


def embed(params, ids):
    """int [B, K, S] -> [B, S, D]."""
    return sum(params["embedding"]["tables"][str(k)]["embedding"][ids[:, k]] for k in range(K))


def logits(params, hidden):
    """[B, S, D] -> [B, K, S, V]."""
    return jnp.stack([hidden @ params["heads"][str(k)]["kernel"] for k in range(K)], 1)


def memory_of(params, states):
    return states @ params["feed"]["states"]["kernel"] + params["feed"]["states"]["bias"]


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, ids, memory, mask):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[-1]), (len(ids), ids.shape[-1]))
    model = tree.merge(graphdef, params["second"])
    hidden, _ = model.run(embed(params, ids), positions, None, None, memory, mask)
    return logits(params, hidden)


@torch.no_grad()
def text_states(mask):
    tokens, mask = torch.from_numpy(TOKENS), torch.from_numpy(mask)
    return reference().text_encoder(tokens, attention_mask=mask).last_hidden_state.numpy()


@torch.no_grad()
def theirs(**given):
    given = {name: torch.from_numpy(x) for name, x in given.items()}
    found = reference()(decoder_input_ids=torch.from_numpy(IDS.reshape(-1, COLUMNS)), **given)
    return found.logits.reshape(2, K, COLUMNS, V).numpy()


@pytest.mark.parametrize("name", MASKS)
def test_logits_of_every_codebook_equal_the_reference(ours, name):
    graphdef, params = ours
    mask = MASKS[name]
    want = theirs(input_ids=TOKENS, attention_mask=mask)
    got = run(graphdef, params, IDS, memory_of(params, text_states(mask)), mask)
    assert want.std() > 0.3
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("mask", [None, MASKS["ragged"]], ids=["unmasked", "masked"])
def test_logits_on_any_memory_equal_the_reference(ours, mask):
    graphdef, params = ours
    memory = RNG.normal(size=(2, WORDS, WIDTH)).astype(np.float32)
    with torch.no_grad():
        found = reference().decoder(
            input_ids=torch.from_numpy(IDS.reshape(-1, COLUMNS)),
            encoder_hidden_states=torch.from_numpy(memory),
            encoder_attention_mask=None if mask is None else torch.from_numpy(mask),
        )
    want = found.logits.reshape(2, K, COLUMNS, V).numpy()
    np.testing.assert_allclose(run(graphdef, params, IDS, memory, mask), want, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def step(graphdef, params, cache, ids, positions):
    hidden, cache = tree.merge(graphdef, params["second"]).run(
        embed(params, ids), positions, None, cache
    )
    return logits(params, hidden), cache


@functools.partial(jax.jit, static_argnums=(0, 2))
def start(graphdef, params, length, memory, mask):
    return tree.merge(graphdef, params["second"]).init_cache(2, length, memory, mask)


def test_cached_decode_equals_the_reference(ours):
    graphdef, params = ours
    mask = MASKS["no_text"]
    want = theirs(input_ids=TOKENS, attention_mask=mask)
    cache = start(graphdef, params, COLUMNS, memory_of(params, text_states(mask)), mask)
    positions, made = np.tile(np.arange(COLUMNS), (2, 1)), []
    for columns in (slice(0, 5), *(slice(s, s + 1) for s in range(5, COLUMNS))):
        got, cache = step(graphdef, params, cache, IDS[..., columns], positions[:, columns])
        made.append(got)
    np.testing.assert_allclose(np.concatenate(made, 2), want, atol=1e-4)


@pytest.mark.parametrize(("channels", "delays"), [(1, (0, 1, 2, 3)), (2, (0, 0, 1, 1))])
def test_the_grid_is_the_delay_pattern_of_the_reference(channels, delays, monkeypatch):
    decoder = reference().decoder
    monkeypatch.setattr(decoder.config, "audio_channels", channels)
    codes = RNG.integers(0, V, (7, K)).astype(np.int32)
    grid = system(delays=delays).layout.arrange({CODEC: SimpleNamespace(values=codes, index=None)})
    begun = np.concatenate([np.full((K, 1), V), codes.T], 1)
    length = 7 + 1 + max(delays)
    assert grid.content.shape == (K, length)
    _, pattern = decoder.build_delay_pattern_mask(torch.from_numpy(begun), V, length)
    made = decoder.apply_delay_pattern_mask(torch.zeros(K, length, dtype=int), pattern)
    np.testing.assert_array_equal(grid.content, made)


def test_decoding_over_the_layout_equals_generate(ours):
    """Both add the same noise to the logits of a column: without any, random weights say one id
    for ever, and no id could stand in a wrong column."""
    graphdef, params = ours
    frames, mask = 36, MASKS["ragged"]
    memory = np.array(memory_of(params, text_states(mask)))
    noise = RNG.gumbel(size=(frames + K, 2, K, V)).astype(np.float32)
    want = reference().decoder.generate(
        torch.full((2 * K, 1), V),
        attention_mask=torch.ones(2, 1, dtype=int),
        encoder_hidden_states=torch.from_numpy(memory),
        encoder_attention_mask=torch.from_numpy(mask),
        decoder_start_token_id=V,  # these two as generation_config.json of the published has them
        pad_token_id=V,
        do_sample=False,
        logits_processor=[
            lambda ids, x: x + torch.from_numpy(noise[ids.shape[1]]).reshape(x.shape)
        ],
        num_return_sequences=1,
        use_cache=False,  # it would give self- and cross-attention one cache
        max_length=frames + K,
    )
    assert want.shape == (2, K, frames) and (want[..., 1:] != want[..., :-1]).float().mean() > 0.5
    delayed = system().layout
    scheduler = delayed.scheduler()
    state = scheduler.init(2, lengths={CODEC: [frames] * 2}, inits=[V] * K)
    ids, cells = [np.full((2, K), V)], []
    cache = start(graphdef, params, frames + K, memory, mask)
    decide = jax.jit(scheduler.next)
    while not state.done.all():
        position = np.full((2, 1), len(cells))
        scores, cache = step(graphdef, params, cache, jnp.asarray(ids[-1])[..., None], position)
        state, column = decide(state, (scores[:, :, 0] + noise[len(ids)]).argmax(-1))
        ids.append(column.ids)
        cells.append(column)
    assert len(ids) == frames + K
    content = np.stack(ids, -1)
    for row in range(2):
        placed = delayed.place({CODEC: SimpleNamespace(values=want[row].T.numpy(), index=None)})
        grid = delayed.collect(content[row], placed.clock, placed.cells)
        for field in ("stream", "level", "item"):
            made = np.stack([getattr(column, field)[row] for column in cells], -1)
            np.testing.assert_array_equal(made, placed.cells[field][:, 1:])
        np.testing.assert_array_equal(delayed.restore(grid)[CODEC].values, want[row].T)


# Hidden width, layers, heads, codebooks, channels: `convert_musicgen_transformers.py` and the
# configurations of facebook/musicgen-*.
PUBLISHED = {
    "small": (1024, 24, 16, 4, 1),
    "medium": (1536, 48, 24, 4, 1),
    "large": (2048, 48, 32, 4, 1),
    "stereo-small": (1024, 24, 16, 8, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_at_full_size(name, tmp_path):
    width, layers, heads, codebooks, channels = PUBLISHED[name]
    full = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(
            d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12
        ),
        audio_encoder=reference_config().audio_encoder,
        decoder=transformers.MusicgenDecoderConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * width,
            num_codebooks=codebooks,
            audio_channels=channels,
        ),
    )
    with torch.device("meta"):
        model = transformers.MusicgenForConditionalGeneration(full)
    full.save_pretrained(tmp_path)
    sizes = musicgen.musicgen_sizes(tmp_path)
    delays = tuple(k // channels for k in range(codebooks))
    ours = system(2048, codebooks, delays, 768, width, layers, heads, 4 * width)
    assert (sizes.decoder, sizes.text_width) == (ours.model.second.trunk, 768)
    state = musicgen.chosen(model.state_dict())
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    like = musicgen.beside_text(abstract(ours))
    grid_weights.check(musicgen.table(sizes), shapes, like)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(like)) == count

    lost = f"decoder.model.decoder.layers.{layers - 1}.fc1.weight"
    head = f"decoder.lm_heads.{codebooks - 1}.weight"
    shapes |= {head: (2049, width), "decoder.lm_heads.8.weight": (2048, width)}
    del shapes[lost]
    with pytest.raises(UserError) as error:
        grid_weights.check(musicgen.table(sizes), shapes, like)
    for part in (
        f"missing: {lost};",
        "unexpected: decoder.lm_heads.8.weight;",
        f"misshapen: {head} (2049, {width}), wanted (2048, {width})",
    ):
        assert part in str(error.value)


def test_weights_of_other_types_and_stored_sinusoids(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spare = {musicgen.DERIVED: np.zeros((2048, WIDTH), np.float32)}
    save_file(spare, tmp_path / "older.safetensors")
    params = load(tmp_path, system(), "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def test_a_text_encoder_of_the_same_width_is_not_projected(folder, tmp_path):
    fields = reference_config().to_dict()
    fields["text_encoder"]["d_model"] = WIDTH
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        UserError, match=r"unexpected: enc_to_dec_proj\.bias, enc_to_dec_proj\.weight"
    ):
        load(tmp_path, system(text=WIDTH))


def test_bad_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load(tmp_path, system())
    fields = json.loads((folder / "config.json").read_text())

    def write(changes):
        (tmp_path / "config.json").write_text(json.dumps(fields | changes))

    write({"model_type": "musicgen_melody"})
    with pytest.raises(UserError, match="of type musicgen_melody, not musicgen"):
        load(tmp_path, system())
    write({"decoder": fields["decoder"] | {"activation_function": "relu"}})
    with pytest.raises(UserError, match="activation_function = relu is not supported"):
        load(tmp_path, system())
    write({"decoder": fields["decoder"] | {"num_hidden_layers": 3}})
    with pytest.raises(UserError, match=r"published decoder .* layers 3, wanted 2"):
        load(tmp_path, system())
    write({"decoder": fields["decoder"] | {"num_attention_heads": 5}})
    with pytest.raises(UserError, match="width=24 is not a multiple of heads=5"):
        load(tmp_path, system())
    write({"text_encoder": {}})
    with pytest.raises(UserError, match="lacks 'd_model'"):
        load(tmp_path, system())
    write({})
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        load(tmp_path, system())
    lost = "decoder.lm_heads.2.weight"
    for file in folder.glob("*.safetensors"):
        kept = {name: x for name, x in load_file(file).items() if name != lost}
        save_file(kept, tmp_path / file.name)
    with pytest.raises(UserError, match=f"missing: {lost}\n"):
        load(tmp_path, system())
