"""GridLM: every kind of trunk, embedding and head over the rows of a layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grid_systems import ONE_BY_ONE, SYSTEMS, UPSTREAM, backbone, codes, depth, record, text

from slm_jax.data.rows import pack_row, stack
from slm_jax.decoding.given import given_of
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.one_shot import OneShot
from slm_jax.decoding.samplers import Sampling
from slm_jax.errors import UserError
from slm_jax.layouts import Layout, Par
from slm_jax.models import grid_losses
from slm_jax.models.grid_config import GridLMConfig, predicted
from slm_jax.models.grid_embedding import EmbeddingConfig
from slm_jax.models.nar import stages
from slm_jax.models.speech_lm import init_from_llm, trainable
from slm_jax.models.system import System
from slm_jax.nn.tree import flatten, merge, pure_params
from slm_jax.streams import StreamSpec
from slm_jax.training import flops

LENGTH = 48
# Kinds that differ in how they decode; tests/e2e/test_systems.py decodes every system.
DECODED = (
    "parallel rows, mean",
    "depth, weights per step",
    "depth beside a label",
    "second transformer, added",
    "vectors predicted",
)


@functools.cache
def built(name):
    """(graphdef, parameters) of a system."""
    return pure_params(SYSTEMS[name].build(nnx.Rngs(0)))


@functools.cache
def losses_of(name):
    graphdef, params = built(name)
    run = jax.jit(lambda batch: merge(graphdef, params).losses(batch))
    return lambda batch: {k: float(v) for k, v in run(batch).items()}


def row(name, *seeds, key=0):
    """Records in a row; without a key nothing in the layout is left to chance."""
    records = [record(seed) for seed in seeds]
    return pack_row(SYSTEMS[name].layout, LENGTH, records, None if key is None else (key,))


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_have_weights_coefficients_and_gradients(name):
    system = SYSTEMS[name]
    graphdef, params = built(name)
    batch = stack([row(name, 0), row(name, 1, key=1), row(name)])
    weights = merge(graphdef, params).weights(batch)
    coefficients = system.model.coefficients(system.layout)

    def total(params):
        sums = merge(graphdef, params).losses(batch)
        return sum(coefficients[n] * sums[n] / weights[n] for n in coefficients), sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert set(sums) == set(weights) >= set(coefficients)
    assert np.isfinite(value) and value > 0
    for path, leaf in flatten(gradient).items():
        assert np.isfinite(leaf).all(), path
    assert all(float(weights[name]) > 0 for name in coefficients)
    groups = system.model.groups(system.layout)
    rows = [r for rows in groups.values() for r in rows]
    assert sorted(rows) == list(predicted(system.layout))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if SYSTEMS[name].layout.packs])
def test_packed_records_have_the_losses_of_single_ones(name):
    run = losses_of(name)
    apart = [run(stack([row(name, seed, key=None)])) for seed in (3, 4)]
    together = run(stack([row(name, 3, 4, key=None)]))
    for key, value in together.items():
        if key != "vectors":  # their times and noise are the row's
            np.testing.assert_allclose(value, apart[0][key] + apart[1][key], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_column_by_column_equals_the_whole_row(name):
    layout = SYSTEMS[name].layout
    graphdef, params = built(name)
    batch = stack([row(name, 5), row(name, 6)])
    columns = [k for k in ("tokens", "vectors", "links", "copies", "positions") if k in batch]

    @jax.jit
    def whole(batch):
        model = merge(graphdef, params)
        states, _ = model.states(batch)
        return states

    @jax.jit
    def stepped(batch):
        model = merge(graphdef, params)
        up = {k: v for k, v in batch.items() if k.startswith("upstream/")}
        cache, found = model.init_cache(2, LENGTH, up), []
        for at in range(12):
            cut = {
                k: batch[k][..., at : at + 1] if k != "vectors" else batch[k][:, at : at + 1]
                for k in columns
            }
            states, cache = model.step(cut, cache)
            found.append(states)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)

    real = (batch["segment_ids"][:, :12] > 0)[..., None]
    for a, b in zip(jax.tree.leaves(whole(batch)), jax.tree.leaves(stepped(batch)), strict=True):
        np.testing.assert_allclose(a[:, :12] * real, b * real, rtol=1e-4, atol=1e-4)
    assert layout.shift == 1


@pytest.mark.parametrize("name", DECODED)
def test_decoding_gives_valid_streams(name):
    layout = SYSTEMS[name].layout
    graphdef, params = built(name)
    engine = GridEngine(
        merge(graphdef, params), layout, sampling=Sampling(temperature=1.0), room=32
    )
    records = [record(7), record(8)]
    lengths = {stream.family: [5, 7] for stream in layout.streams if stream.predicted}
    for one, decoded in zip(records, engine.generate(records, lengths=lengths), strict=True):
        found = layout.restore(decoded.grid)
        assert found
        for stream in layout.streams:
            if stream.family not in found:
                continue
            values = found[stream.family].values
            assert ((values >= 0) & (values < np.array(stream.vocab))).all()
            if not stream.predicted and stream.family != "latents":
                given = np.asarray(one[stream.family].values)
                np.testing.assert_array_equal(values, given[: len(values)])
        if layout.vector_row is not None and layout.vector_row.predicted:
            kept = np.abs(decoded.vectors).sum(1) > 0
            assert kept.sum() == len(found["latents"].values)


def test_greedy_decoding_is_what_the_whole_row_says():
    """Teacher and pupil: feeding a decoded row back, every sampled id is the likeliest one."""
    name = "parallel rows, mean"
    layout = SYSTEMS[name].layout
    graphdef, params = built(name)
    model = merge(graphdef, params)
    engine = GridEngine(model, layout, sampling=Sampling(), room=32)
    [decoded] = engine.generate([record(9)], lengths={"text": [4], "codes": [6]})
    content = decoded.grid.content
    width = content.shape[1] - 1
    batch = {
        "tokens": content[None, :, :-1],
        "positions": np.arange(width)[None],
        "segment_ids": np.ones((1, width), np.int32),
    }
    states, _ = model.states(batch)
    for r, line in enumerate(layout.rows):
        logits = model.logits(states, r)[0]
        said = decoded.grid.cells[r, 1:]
        for column in np.flatnonzero(said["stream"] >= 0):
            options = logits[column][: line.ranges[0][1]]
            assert int(options.argmax()) == content[r, column + 1]


def test_a_prefix_sees_all_of_itself_and_nothing_after_it():
    name = "a prefix that sees itself"
    graphdef, params = built(name)
    states = jax.jit(lambda batch: merge(graphdef, params).states(batch)[0].trunk)
    batch = stack([row(name, 5, 6)])
    first = int((batch["segment_ids"] == 1).sum())  # columns of the first record: 4 of text, BOS
    before = states(batch)
    for column, moved in ((3, range(first)), (7, range(7, first))):
        tokens = batch["tokens"].copy()
        other = 1 + 10 * (column > 4)  # an id of the text, or of the speech
        tokens[0, 0, column] = other + (tokens[0, 0, column] == other)
        after = states(batch | {"tokens": tokens})
        far = np.abs(after - before).max(-1)[0] > 1e-6
        assert np.flatnonzero(far).tolist() == [*moved]


def test_decoding_reads_a_prefix_as_the_whole_row_does():
    name = "a prefix that sees itself"
    layout = SYSTEMS[name].layout
    model = merge(*built(name))
    engine = GridEngine(model, layout, sampling=Sampling(), room=32)
    records = [record(9), record(10, letters=6)]
    for letters, decoded in zip((4, 6), engine.generate(records), strict=True):
        content = decoded.grid.content[:, :-1]
        width = content.shape[1]
        batch = {
            "tokens": content[None],
            "positions": np.arange(width)[None],
            "segment_ids": np.ones((1, width), np.int32),
        }
        logits = model.logits(model.states(batch)[0], 0)[0]
        said = decoded.grid.content[0, letters + 1 :]
        assert len(said) >= 1 and model.ids_of(0) == slice(10, 19)
        np.testing.assert_array_equal(said - 10, logits[letters:].argmax(-1))


def test_the_whole_of_depths_columns_is_the_sum_without_choice():
    name = "depth in some columns"
    system = SYSTEMS[name]
    batch = stack([row(name, 0, 1, 2, key=5)])
    full = dataclasses.replace(system.model, depth_share=1.0)
    graphdef, params = built(name)
    other, _ = pure_params(System(system.layout, full).build(nnx.Rngs(0)))
    some, every = merge(graphdef, params), merge(other, params)
    targets = (batch["weights"][:, 2:] > 0).any(1).sum()
    assert 0 < targets <= LENGTH // 2  # all have room in half of the columns
    for key, value in every.losses(batch).items():
        np.testing.assert_allclose(some.losses(batch)[key], value, rtol=1e-5)
        np.testing.assert_allclose(some.weights(batch)[key], every.weights(batch)[key])


def test_columns_with_targets_come_first():
    wanted = np.array([[0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]]) > 0
    np.testing.assert_array_equal(
        grid_losses.first(wanted, 4), [[1, 4, 5, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    )


def test_nar_stage_is_the_level_that_a_record_predicts():
    weights = np.zeros((1, 4, 6))
    weights[0, 2, 1:3] = 1  # of the first record
    weights[0, 3, 4] = 1  # of the second
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    assert stages(weights, segments).tolist() == [[2, 2, 2, 3, 3, 0]]


def test_one_shot_fills_levels_and_collapses_a_path():
    name = "one level at a time"
    model = merge(*built(name))
    filled = OneShot(model, SYSTEMS[name].layout, LENGTH).fill(record(3))
    np.testing.assert_array_equal(filled[:, 0], record(3)["codes"].values[:, 0])
    assert filled.shape == (7, 3) and filled.max() < 8
    again = record(3)
    again["codes"].values[:, 1:] = 0  # finer levels are not read
    np.testing.assert_array_equal(OneShot(model, SYSTEMS[name].layout, LENGTH).fill(again), filled)
    units = OneShot(merge(*built("CTC")), SYSTEMS["CTC"].layout, LENGTH).units(record(3))
    assert ((units >= 0) & (units < 8)).all()


def test_upstream_columns_are_found_again():
    layout = SYSTEMS["second transformer, added"].layout
    given = given_of(layout, [record(1), record(2, letters=6)])
    for b, count in enumerate((4, 6)):
        columns = given.places[b, :count]
        ids = record(b + 1, letters=count)["text"].values[:, 0]
        np.testing.assert_array_equal(given.upstream["upstream/tokens"][b, 0, columns], ids)
        assert (given.places[b, count:] == -1).all()


def test_text_llm_grows_to_the_layouts_ids():
    layout = Layout("p", Par((text(eos=10, pad=11), codes(eos=8, pad=9))))
    config = GridLMConfig().with_backbone(backbone(7), layout)
    assert config.backbone.vocab_size == layout.rows[0].vocab > 7
    _, params = pure_params(System(layout, config).build(nnx.Rngs(0)))
    _, llm = pure_params(SYSTEMS["gated rows"].build(nnx.Rngs(1)))
    llm = llm["backbone"]
    small = llm | {"embedding": {"embedding": llm["embedding"]["embedding"][:7]}}
    table = init_from_llm(params, small)["backbone"]["embedding"]["embedding"]
    np.testing.assert_array_equal(table[:7], small["embedding"]["embedding"])
    np.testing.assert_allclose(table[7:], np.tile(table[:7].mean(0), (5, 1)), rtol=1e-5, atol=1e-7)


def test_a_text_llm_of_which_nothing_is_asked_is_held_still():
    system = SYSTEMS["second transformer, cross-attention"]
    still = dataclasses.replace(system.model.second, text_weight=0.0)
    assert dataclasses.replace(system.model, second=still).freezes and not system.model.freezes
    _, params = built("second transformer, cross-attention")
    moves = flatten(trainable(params, "frozen"))
    assert all(moves[path] != path.startswith("backbone/") for path in moves)


@pytest.mark.parametrize(
    ("layout", "config", "words"),
    [
        (Par((text(), codes())), GridLMConfig(backbone(4)), "ids go up to"),
        (Par((text(), codes())), GridLMConfig(backbone(), EmbeddingConfig(tables=(0, 1))), "4"),
        (codes(), GridLMConfig(backbone(), depth=depth("previous"), depth_from=3), "depth_from"),
        (codes(), GridLMConfig(backbone(), prefix=True), "begins with a stream"),
    ],
)
def test_a_model_that_does_not_fit_the_layout_is_refused(layout, config, words):
    with pytest.raises(UserError, match=words):
        System(Layout("odd", layout), config)


def test_an_upstream_layout_needs_a_second_transformer():
    with pytest.raises(UserError, match="second"):
        System(Layout("odd", codes(), upstream=UPSTREAM), GridLMConfig(backbone()))


def test_the_text_of_an_upstream_layout_is_checked_against_the_dataset():
    layout = SYSTEMS["second transformer, cross-attention"].layout
    specs = {"codes": StreamSpec("codes", "codes", 1.0, (8, 8, 8))}
    with pytest.raises(UserError, match="no stream 'text'"):
        layout.check(specs)
    with pytest.raises(UserError, match=r"'text' .* has codes per level \(5,\)"):
        layout.check(specs | {"text": StreamSpec("text", "codes", "word", (5,))})


def test_operations_are_counted_through_scans_and_gradients():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    x, weights = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    once = 3 * 2 * 4 * 8 * 8
    assert flops.counted(layers, x, weights) == once
    assert flops.counted(jax.grad(layers, argnums=(0, 1)), x, weights) == 3 * once
