"""Plans: the arithmetic of speech, memory against XLA and closed forms, days and dollars."""

import dataclasses
import importlib.util
import math

import jax
import numpy as np
import pytest
import tiny_job

from slm_jax import config
from slm_jax.data.schema import WORDS
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.planning import accelerators, memory, plan, speech
from slm_jax.planning.plan import Assumed
from slm_jax.planning.speech import Pace
from slm_jax.training import flops, setup
from slm_jax.training.partitioning import Parallel

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 64, 6, 4, 2, 16, 192
ROWS, COLUMNS = 8, 64
SIZES = {
    "BackboneConfig.width": WIDTH,
    "BackboneConfig.layers": LAYERS,
    "BackboneConfig.head_dim": HEAD_DIM,
    "BackboneConfig.mlp_width": MLP,
    "BackboneConfig.lora_rank": 0,
    "TrainJob.seq_len": COLUMNS,
    "LossWeights.kl": 0.0,
}
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "kv_heads": "tensor"}
ONE, EIGHT = accelerators.parse("v5e-1"), accelerators.parse("v5e-8")


def job(**more):
    return config.loads(tiny_job.gin("unused", "unused", **SIZES | more))


@pytest.fixture(scope="module")
def system():
    """name -> layout of a system of gin/systems, at its published size."""
    return lambda name: config.load([f"systems/{name}.gin"], root="System", part=True).layout


def launcher():
    spec = importlib.util.spec_from_file_location("plan", config.GIN_DIR.parent / "launch/plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestSpeech:
    def test_the_lecture_assumes_a_hundred_ids_a_minute(self):
        """A million hours are 6 billion text tokens; 15 trillion are 285,000 years."""
        lecture = Pace(words=75, ids=4 / 3)
        assert lecture.text_ids(1e6) == pytest.approx(6e9)
        assert lecture.years(15e12) == pytest.approx(285_000, rel=1e-3)
        reader = Pace(words=150, ids=4 / 3)  # who is heard all of the time
        assert reader.text_ids(1e6) == pytest.approx(12e9)
        assert reader.years(15e12) == pytest.approx(142_600, rel=1e-3)

    @pytest.mark.parametrize(
        ("a_second", "billions", "years"), [(2.62, 9.4, 182_000), (3.0, 10.8, 159_000)]
    )
    def test_measured_readers_say_more(self, a_second, billions, years):
        """LibriSpeech, as TASLA and TASTE count it: more ids an hour, fewer years."""
        found = Pace(words=60 * a_second, ids=1.0)
        assert found.text_ids(1e6) == pytest.approx(billions * 1e9, rel=0.005)
        assert found.years(15e12) == pytest.approx(years, rel=0.005)

    def test_rates_of_moshi_are_those_of_its_codec(self, system):
        """Eight levels of 2048 at 12.5 Hz are 1.1 kbit/s (arXiv 2410.00037)."""
        layout = system("moshi")
        found = speech.rates(layout, speech.examples(layout, Pace(), 20.0, None))
        assert found.columns == pytest.approx(12.5, rel=0.02)
        assert found.speech_bits == pytest.approx(8 * 11 * 12.5, rel=0.02)
        assert found.speech_targets == pytest.approx(8 * 12.5, rel=0.02)

    def test_rates_of_taste_follow_the_speaker(self, system):
        """A column a text id; a word's codes of four levels of 64, 24 bits a word."""
        layout = system("taste")
        slow, fast = (
            speech.rates(layout, speech.examples(layout, Pace(words, 4 / 3), 20.0, None))
            for words in (75, 150)
        )
        assert fast.speech_bits == pytest.approx(24 * 150 / 60, rel=0.03)
        assert fast.speech_bits == pytest.approx(2 * slow.speech_bits, rel=0.02)
        tail = 5 / 20  # columns after the last word, for the delays and the end
        assert fast.columns == pytest.approx(200 / 60 + tail, rel=0.06)

    def test_every_system_has_rates(self, system):
        for path in sorted((config.GIN_DIR / "systems").glob("*.gin")):
            layout = system(path.stem)
            found = speech.rates(layout, speech.examples(layout, Pace(), 6.0, 25.0)[::16])
            assert found.columns > 0, path
            continuous = layout.vector_row is not None
            assert found.speech_bits > 0 or continuous or not found.speech_targets, path

    def test_a_rate_that_nothing_says_is_asked_for(self, system):
        with pytest.raises(UserError, match="does not say how many items a second"):
            speech.examples(system("speechgpt"), Pace(), 6.0, None)

    def test_a_dataset_is_measured(self, tmp_path):
        tiny_job.write_data(tmp_path)
        layout = job().system.layout
        hours, records = speech.measured(layout, str(tmp_path))
        assert len(records) == 60
        words = sum(len(record[WORDS].words) for record in records)
        assert hours * 3600 == pytest.approx(0.3 * words)  # as tiny_job says of its words
        pace = speech.pace(records, Pace())
        assert pace.words == pytest.approx(200)
        ids = sum(len(record["text-tiny"].values) for record in records)
        assert pace.ids == pytest.approx(ids / words)


class TestAccelerators:
    @pytest.mark.parametrize(
        ("name", "chips", "slices", "hosts", "topology"),
        [
            ("v5e-1", 1, 1, 1, "1x1"),
            ("v5e-8", 8, 1, 2, "2x4"),
            ("v5e-256", 256, 1, 64, "16x16"),
            ("v5p-8", 4, 1, 1, "2x2x1"),  # the number counts cores
            ("v5p-128", 64, 1, 16, "4x4x4"),
            ("2xv6e-32", 64, 2, 8, "4x8"),
            ("h100-64", 64, 1, 8, ""),
        ],
    )
    def test_names(self, name, chips, slices, hosts, topology):
        found = accelerators.parse(name)
        assert (found.chips, found.slices, found.hosts) == (chips, slices, hosts)
        assert found.topology == topology

    @pytest.mark.parametrize(
        "name", ["v5x-8", "v5e", "v5e-12", "v5p-1", "0xv5e-8", "v5e-8-8", "2xh100-8"]
    )
    def test_what_is_none(self, name):
        with pytest.raises(UserError):
            accelerators.parse(name)

    def test_peak_is_that_of_all_chips(self):
        assert accelerators.parse("v5e-256").peak == 256 * 197e12


class TestMemory:
    @pytest.mark.parametrize(
        ("remat", "a_column"),
        [
            ("full", WIDTH),
            ("attention", WIDTH + 2 * (HEADS + KV_HEADS) * HEAD_DIM),
            ("dots", 2 * WIDTH + (HEADS + 2 * KV_HEADS) * HEAD_DIM + 2 * MLP),
        ],
    )
    def test_what_a_layer_keeps_is_the_closed_form(self, remat, a_column):
        deep, shallow = (
            job(**{"BackboneConfig.remat": remat, "BackboneConfig.layers": layers})
            for layers in (LAYERS, LAYERS - 2)
        )
        alive = [memory.of(one, memory.mesh_of(one, ONE)).activations for one in (deep, shallow)]
        assert (alive[0] - alive[1]) / 2 == ROWS * COLUMNS * a_column * 4

    @pytest.mark.parametrize(
        ("remat", "lora", "layers"), [("none", 0, LAYERS), ("dots", 2, LAYERS), ("full", 2, 24)]
    )
    def test_xla_allocates_as_much(self, remat, lora, layers):
        """Gradients and activations are what XLA calls temporary, where most of it is what layers
        keep: of the inside of one layer XLA:CPU, late to free it, takes twice what is alive.
        """
        settings = {"remat": remat, "lora_rank": lora, "layers": layers}
        one = job(**{f"BackboneConfig.{name}": value for name, value in settings.items()})
        program = setup.make(one, jax.devices()[:1])
        told = memory.of(one, program.mesh.abstract_mesh)
        with jax.set_mesh(program.mesh):
            lowered = program.step.lower(program.state, program.batch, program.reference)
        found = lowered.compile().memory_analysis()
        temporary = told.gradients + told.activations
        assert 0.5 < temporary / found.temp_size_in_bytes < 1.2
        held = told.parameters + told.optimizer + told.batch
        assert held == pytest.approx(found.argument_size_in_bytes, rel=1e-3)

    def test_matrices_are_copied_in_the_dtype_of_products(self):
        one, half = job(), job(**{"BackboneConfig.dtype": "bfloat16"})
        told, halved = (memory.of(each, memory.mesh_of(each, ONE)) for each in (one, half))
        assert told.copies == 0
        norms = (2 * LAYERS + 1) * WIDTH * 4
        assert halved.copies == pytest.approx((halved.parameters - norms) / 2, abs=norms)
        assert halved.parameters == told.parameters
        assert halved.activations < 0.6 * told.activations

    def test_fsdp_and_tensor_divide_the_state(self):
        whole, divided = job(), job(**{"Parallel.rules": RULES})
        divided = dataclasses.replace(divided, parallel=Parallel(1, 4, 2, rules=RULES))
        alone = memory.of(whole, memory.mesh_of(whole, ONE))
        shared = memory.of(divided, memory.mesh_of(divided, EIGHT))
        program = setup.make(divided)  # eight devices
        flat = tree.flatten(program.state["params"]).values()
        exact = sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in flat)
        assert shared.parameters == exact
        assert shared.parameters < alone.parameters / 3.5  # norms and what else has one axis
        assert shared.optimizer == pytest.approx(2 * shared.parameters, rel=1e-3)  # AdamW
        assert shared.gradients == shared.parameters
        assert shared.batch == alone.batch / 4  # rows over four, whole on both of TENSOR
        assert shared.activations < alone.activations / 4  # two rows of eight; half of each layer

    def test_microbatches_take_a_second_gradient_and_fewer_activations(self):
        at_once, cut = job(), job(**{"TrainJob.accumulate": 4})
        one, four = (memory.of(each, memory.mesh_of(each, ONE)) for each in (at_once, cut))
        assert four.gradients == 2 * one.gradients
        assert four.activations == pytest.approx(one.activations / 4, rel=0.05)

    @pytest.mark.parametrize(
        ("parallel", "message"),
        [
            (Parallel(fsdp=3), "does not divide 8 devices"),
            (Parallel(slices=2), "slices is 2, v5e-8 has 1"),
            (Parallel(context=5), "seq_len 64 does not divide over context = 5"),
        ],
    )
    def test_what_cannot_be_divided(self, parallel, message):
        with pytest.raises(UserError, match=message):
            memory.mesh_of(dataclasses.replace(job(), parallel=parallel), EIGHT)

    def test_two_slices_are_one_mesh(self):
        two = dataclasses.replace(job(), parallel=Parallel(slices=2, fsdp=4))
        sizes = dict(memory.mesh_of(two, accelerators.parse("2xv5e-8")).shape)
        assert sizes == {"data": 4, "fsdp": 4, "tensor": 1, "context": 1}


class TestPlan:
    def planned(self, hours=1000.0, accelerator="v5e-4", assumed=None, **more):
        one = job(**more)
        layout = one.system.layout
        pace = Pace()
        records = speech.examples(layout, pace, 10.0, None)
        chosen = accelerators.parse(accelerator)
        return one, chosen, plan.make(one, chosen, hours, records, pace, assumed or Assumed())

    def test_steps_read_every_column(self):
        one, _, found = self.planned()
        read = found.steps * found.rows * one.seq_len * found.fill
        assert read == pytest.approx(found.columns, rel=1e-3)
        assert found.columns == pytest.approx(1000 * 3600 * found.rates.columns, rel=1e-6)
        assert found.fill > 0.9

    def test_work_time_and_cost(self):
        one, chosen, found = self.planned(assumed=Assumed(mfu=0.5, price=2.0))
        lengths = np.array(
            [
                one.system.layout.length(r)
                for r in speech.examples(one.system.layout, Pace(), 10, None)
            ]
        )
        model = one.system.model
        rows = plan.packed(one, lengths)
        times = round((rows > 0).sum() / lengths.sum())
        a_row = times * flops.step(model.backbone, lengths, model.codebooks) / len(rows)
        assert found.step_work == pytest.approx(found.rows * a_row)
        assert found.work == found.steps * found.step_work
        assert found.step_seconds == pytest.approx(found.step_work / (4 * 197e12 * 0.5))
        assert found.days * 24 == pytest.approx(found.steps * found.step_seconds / 3600)
        assert found.cost == pytest.approx(found.days * 24 * chosen.chips * 2.0)

    def test_twice_the_audio_or_epochs_takes_twice_the_steps(self):
        steps = [
            self.planned(hours, assumed=Assumed(epochs=epochs))[2].steps
            for hours, epochs in ((1000, 1), (2000, 1), (1000, 2))
        ]
        assert steps[1] == pytest.approx(2 * steps[0], abs=1)
        assert steps[2] == steps[1]

    def test_the_batch_is_raised_to_what_the_mesh_divides(self):
        assert self.planned(accelerator="v5e-16")[2].rows == 16  # eight in the file

    def test_what_is_too_long_is_left_out(self):
        found = self.planned(**{"TrainJob.seq_len": 32})[2]
        assert 0.3 < found.skipped < 0.9
        assert found.columns < 0.7 * 1000 * 3600 * found.rates.columns
        assert found.fill > 0.8
        with pytest.raises(UserError, match="no utterance fits into 8 columns"):
            self.planned(**{"TrainJob.seq_len": 8})

    def test_the_program_prints_it(self, tmp_path, capsys):
        (tmp_path / "job.gin").write_text(tiny_job.gin("unused", "unused", **SIZES))
        flags = [f"--gin_file={tmp_path / 'job.gin'}", "--accelerator=v5p-8"]
        launcher().main([*flags, "--hours=1e6", "--words_per_minute=75", "--price=1"])
        printed = capsys.readouterr().out
        assert "text ids              6 billion" in printed
        assert "15 trillion text ids  285 thousand years" in printed
        assert "memory of one of 4 v5p" in printed
        tiny_job.write_data(tmp_path / "data")
        launcher().main([*flags, f"--dataset={tmp_path / 'data'}"])
        assert "200 a minute" in capsys.readouterr().out
        with pytest.raises(UserError, match="give --hours or --dataset"):
            launcher().main(flags)
