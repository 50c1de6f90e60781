"""Every system of gin/systems/tiny learns, decodes, and gives its streams back."""

import dataclasses
import json
from types import SimpleNamespace as NS

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_shards
from flax import nnx

from slm_jax import config
from slm_jax.data import rows
from slm_jax.data.loader import Loader
from slm_jax.data.registry import MixtureSpec
from slm_jax.decoding.engine import DecodeLimits, Engine, Request
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.one_shot import OneShot
from slm_jax.decoding.samplers import Sampling
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.layouts import Nar, Spans, States, Token
from slm_jax.nn import tree
from slm_jax.training import loop
from slm_jax.training.losses import LossWeights, losses

FOLDER = config.GIN_DIR / "systems" / "tiny"
FILES = [path for path in sorted(FOLDER.glob("*.gin")) if not path.stem.endswith("sizes")]
PUBLISHED = sorted(FOLDER.parent.glob("*.gin"))
STEPS, RATE, BATCHES = 80, 0.01, 12
# One for each way of laying out, reading, predicting and decoding; the others are of the sweep.
ALWAYS = {
    "glm4_voice", "mini_omni", "qwen25_omni_talker", "taste", "valle_nar", "vibevoice",
    "voila_autonomous",
}  # fmt: skip
# Units without alignment, sparse text, a frozen text model and long rows take longer.
PATIENT = {"llama_omni": 320, "moshi_stt": 240, "freeze_omni": 240, "waveform": 240}
LEARNED = 0.7  # of the first held-out loss is left at most


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards") / "data"
    tiny_shards.write_data(root)
    return root


def system_of(path):
    """The system in a gin file over the tiny shards, and columns that hold any of their records."""
    system = tiny_shards.fitted(config.load([path], root="System"))
    longest = max(system.layout.length(tiny_shards.record(n)) for n in range(104))
    return system, -(-longest // 16) * 16


def learn(system, seq_len, shards, cache, steps):
    """Trains a system, all steps in one program.

    Returns:
      The model, and the objective on the held-out records before and after.
    """
    data, layout = MixtureSpec(((str(shards), 1.0),)), system.layout
    sizes = {"batch_size": 8, "seq_len": seq_len, "seed": 0, "cache": cache}
    loader = Loader(data, layout, **sizes)
    (held_out,) = Loader(data, layout, **sizes, split="validation").one_pass()
    batches = rows.stack([held_out, *(loader.batch(step) for step in range(BATCHES))])
    graphdef, params = tree.pure_params(system.build(nnx.Rngs(0)))
    objective = objective_of(system, graphdef)
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, 10, steps, RATE / 10)
    update = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, 0.9, 0.95))
    # The first and the last only measure, on the held-out records.
    order = np.array([0, *(1 + step % BATCHES for step in range(steps)), 0])

    @jax.jit
    def train(params, batches):
        def step(state, place):
            params, moments = state
            batch = jax.tree.map(lambda x: x[place], batches)
            value, gradient = jax.value_and_grad(objective)(params, batch)
            gradient = jax.tree.map(lambda x: x * (place > 0), gradient)
            change, moments = update.update(gradient, moments)
            return (optax.apply_updates(params, change), moments), value

        (trained, _), values = jax.lax.scan(step, (params, update.init(params)), order)
        return trained, values

    trained, values = jax.device_get(train(params, batches))
    return tree.merge(graphdef, trained), values[0], values[-1]


def objective_of(system, graphdef):
    """(params, batch) -> what a run minimises."""
    if system.layout.has_text:
        counts = LossWeights(kl=0.0).coefficients(len(system.model.codebooks), False)
    else:
        counts = system.model.coefficients(system.layout)

    def objective(params, batch):
        model = tree.merge(graphdef, params)
        if system.layout.has_text:
            found = losses(model(batch), batch)
        else:
            weights = model.weights(batch)
            found = {name: (total, weights[name]) for name, total in model.losses(batch).items()}
        means = {name: found[name][0] / jnp.maximum(found[name][1], 1e-6) for name in counts}
        return sum(counts[name] * means[name] for name in counts)

    return objective


def heard(record, layout):
    """What decoding may know of a record: levels that are not learned, and the upstream text."""
    known = {"words": record["words"]}
    for stream in (*layout.streams, *(layout.upstream.streams if layout.upstream else ())):
        if stream.family in record and (stream not in layout.streams or not any(stream.weights)):
            levels = stream.first + len(stream.vocab)
            item = record[stream.family]
            known[stream.family] = dataclasses.replace(item, values=item.values[:, :levels])
    return known


def inside(expression):
    """An expression and all parts of it."""
    return [expression, *(part for one in expression.inside for part in inside(one))]


def lengths_of(layout, records):
    """Items of the streams whose end no id tells."""
    marks = [part for part in inside(layout.of) if isinstance(part, Token) and part.weight]
    told = bool(marks) or layout.holds(States) or not layout.shift
    if told or any(s.predicted and s.end >= 0 for s in layout.streams):
        return {}
    said = [stream.family for stream in layout.streams if any(stream.weights) and stream.rate]
    return {family: [len(record[family].values) for record in records] for family in said}


def words_continued(model, layout, records):
    """Records of which the first word is known, and the text of the others."""
    text, speech = layout.families
    vocabulary = Vocabulary(tiny_shards.STARTS, np.ones(tiny_shards.TEXT, bool), layout.rows[0].pad)
    engine = Engine(
        model, layout, vocabulary, text=Sampling(), speech=Sampling(), limits=DecodeLimits(1, 4, 2)
    )
    requests = []
    for record in records:
        ids, codes = record[text], record[speech].values[:1]
        count = int((ids.index == 0).sum())
        first = {
            text: dataclasses.replace(ids, values=ids.values[:count], index=ids.index[:count]),
            speech: dataclasses.replace(record[speech], values=codes),
        }
        rest, words = ids.values[count:, 0].tolist(), int(ids.index[-1])
        requests.append(Request(layout.arrange_prompt(first), codes, rest, words))
    return [layout.restore(grid) for grid in engine.generate(requests)]


def columns_decoded(model, layout, records, room):
    """The streams of records as the model says them, each to its end."""
    known = {s.family: -1 for s in layout.streams if s.predicted and not any(s.weights)}
    lengths = lengths_of(layout, records)
    engine = GridEngine(model, layout, sampling=Sampling(), room=room)
    decoded = engine.generate([heard(r, layout) for r in records], known, lengths)
    assert all(one.grid.content.shape[1] < engine.room for one in decoded), "no end was found"
    if layout.vector_row is not None:
        assert all(np.isfinite(one.vectors).all() and one.vectors.any() for one in decoded)
    return [layout.restore(one.grid) for one in decoded]


def at_once(model, layout, records, length):
    """The streams of records whose columns are predicted at once."""
    shot = OneShot(model, layout, length)
    (said,) = (stream.family for stream in layout.streams if stream.predicted)
    if layout.holds(Nar):
        return [{said: NS(values=shot.fill(record))} for record in records]
    return [{said: NS(values=shot.units(record)[:, None])} for record in records]


def check_streams(layout, record, found):
    """What was said of a record is there, of valid ids, and what was only read is as given."""
    whole = layout.restore(layout.arrange(record))
    sizes, said = {}, {stream.family for stream in layout.streams if any(stream.weights)}
    for stream in layout.streams:
        sizes.setdefault(stream.family, {}).update(enumerate(stream.vocab, stream.first))
    either = any(isinstance(p, Spans) and p.order == "either" for p in inside(layout.of))
    assert found and set(found) <= set(sizes) and (either or said <= set(found))
    for family, stream in found.items():
        ids, given = stream.values, whole[family].values
        below = [size for _, size in sorted(sizes[family].items())]
        assert len(ids) and (ids >= 0).all() and (ids < below).all()
        if family not in said:
            np.testing.assert_array_equal(ids, given[: len(ids)])
        elif family in lengths_of(layout, [record]):
            assert len(ids) == len(given)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_system_loads_at_its_published_size_and_has_a_tiny_form(path):
    system = config.load([path], root="System")
    tiny = config.load([FOLDER / path.name], root="System")
    assert tiny.model.backbone.width <= 96 and type(tiny.model) is type(system.model)


def test_the_main_loop_trains_a_system(shards, tmp_path):
    bindings = {
        "TrainJob.name": "moshi",
        "TrainJob.runs": str(tmp_path),
        "TrainJob.steps": 16,
        "TrainJob.eval_every": 8,
        "TrainJob.prompts": 0,
        "MixtureSpec.parts": ((str(shards), 1.0),),
        "Optimizer.learning_rate": RATE,
    }
    lines = [f"{name} = {value!r}" for name, value in bindings.items()]
    text = "\n".join(['include "systems/tiny/moshi.gin"', *lines])
    job = config.loads(text, name="moshi on tiny shards")
    system, seq_len = system_of(FOLDER / "moshi.gin")
    outcome = loop.train(dataclasses.replace(job, system=system, seq_len=seq_len))
    assert outcome.finished and outcome.trained == 16
    lines = map(json.loads, (job.run_dir / "metrics.jsonl").read_text().splitlines())
    found = [line["losses"] for line in lines if line["split"] == "eval"]
    names = system.model.coefficients(system.layout)
    before, after = (sum(losses[name] for name in names) for losses in found)
    assert after < before


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in ALWAYS else pytest.mark.sweep)
        for path in FILES
    ],
)
def test_a_system_learns_decodes_and_restores(path, shards, tmp_path):
    system, seq_len = system_of(path)
    layout = system.layout
    model, before, after = learn(system, seq_len, shards, tmp_path, PATIENT.get(path.stem, STEPS))
    assert after < LEARNED * before, (before, after)

    records = [*map(tiny_shards.record, tiny_shards.HELD_OUT)]
    if layout.has_text:
        restored = words_continued(model, layout, records)
    elif layout.shift:
        restored = columns_decoded(model, layout, records, 2 * seq_len)
    else:
        restored = at_once(model, layout, records, seq_len)
    for record, found in zip(records, restored, strict=True):
        check_streams(layout, record, found)
