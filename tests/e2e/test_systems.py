"""Every system of gin/systems/tiny learns, decodes, and gives its streams back."""

import dataclasses
import json
from types import SimpleNamespace as NS

import jax
import numpy as np
import pytest
import tiny_shards

from slm_jax import config
from slm_jax.decoding.engine import DecodeLimits, Engine, Request
from slm_jax.decoding.grid_engine import GridEngine
from slm_jax.decoding.one_shot import OneShot
from slm_jax.decoding.samplers import Sampling
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.layouts import Nar, Spans, Token
from slm_jax.nn import tree
from slm_jax.training import loop

FOLDER = config.GIN_DIR / "systems" / "tiny"
FILES = [path for path in sorted(FOLDER.glob("*.gin")) if not path.stem.endswith("sizes")]
PUBLISHED = sorted(FOLDER.parent.glob("*.gin"))
STEPS = 80
# Units without alignment, sparse text, a frozen text model and long rows take longer.
PATIENT = {"llama_omni": 320, "moshi_stt": 240, "freeze_omni": 240, "waveform": 240}
LEARNED = 0.7  # of the first held-out loss is left at most


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards") / "data"
    tiny_shards.write_data(root)
    return root


def job_of(path, shards, runs):
    """A short run of the system in a gin file, on `shards`."""
    bindings = {
        "TrainJob.name": path.stem,
        "TrainJob.runs": str(runs),
        "TrainJob.steps": PATIENT.get(path.stem, STEPS),
        "TrainJob.batch_size": 8,
        "TrainJob.eval_every": 10,
        "TrainJob.prompts": 0,
        "MixtureSpec.parts": ((str(shards), 1.0),),
        "Checkpoints.every": 400,
        "Optimizer.learning_rate": 0.01,
        "Optimizer.warmup_steps": 20,
        "LossWeights.kl": 0.0,
    }
    lines = [f"{name} = {value!r}" for name, value in bindings.items()]
    text = "\n".join([f'include "systems/tiny/{path.name}"', *lines]) + "\n"
    job = config.loads(text, name=f"{path.stem} on tiny shards")
    system = tiny_shards.fitted(job.system)
    longest = max(system.layout.length(tiny_shards.record(n)) for n in range(104))
    return dataclasses.replace(job, system=system, seq_len=-(-longest // 16) * 16)


def held_out(job):
    """The objective on the held-out records, first to last."""
    model, layout = job.system.model, job.system.layout
    if layout.has_text:
        counts = job.losses.coefficients(len(model.codebooks), False)
    else:
        counts = model.coefficients(layout)
    lines = map(json.loads, (job.run_dir / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["split"] == "eval"]
    return [sum(counts[name] * line["losses"][name] for name in counts) for line in found]


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
    if marks or not layout.shift or any(s.predicted and s.end >= 0 for s in layout.streams):
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


@pytest.mark.sweep
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_system_learns_decodes_and_restores(path, shards, tmp_path):
    job = job_of(path, shards, tmp_path)
    layout = job.system.layout
    outcome = loop.train(job)
    losses = held_out(job)
    assert losses[-1] < LEARNED * losses[0], losses

    records = [*map(tiny_shards.record, tiny_shards.HELD_OUT)]
    params = jax.device_get(outcome.params)  # one device decodes
    model = tree.merge(outcome.graphdef, params)
    if layout.has_text:
        restored = words_continued(model, layout, records)
    elif layout.shift:
        restored = columns_decoded(model, layout, records, 2 * job.seq_len)
    else:
        restored = at_once(model, layout, records, job.seq_len)
    for record, found in zip(records, restored, strict=True):
        check_streams(layout, record, found)
