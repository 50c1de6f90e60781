"""What of the ahead-of-time check needs no TPU compiler; the rest is in tests/aot_tpu."""

import dataclasses
import importlib.util
import itertools
import json
import math
import runpy
import shlex

import jax
import pytest
from flax import nnx

from launch import plan
from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.models.speech_lm import trainable
from slm_jax.nn import tree
from slm_jax.paths import REPO
from slm_jax.planning import accelerators, aot, memory, topologies
from slm_jax.training import optimizer, setup, state
from slm_jax.training.chips import GIB
from slm_jax.training.partitioning import Parallel

SMALL = [
    "TrainJob.llm=None", "BATCH_SIZE=16", "BackboneConfig.vocab_size=49152",
    "BackboneConfig.layers=1", "BackboneConfig.width=32", "BackboneConfig.mlp_width=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def job():
    files = ["taste_pretrain.gin", "models/smollm2_135m.gin", "parallel/fsdp.gin"]
    return config.load(files, [*SMALL, "LossWeights.kl=0.0"])


def test_spread_puts_one_row_of_a_microbatch_on_each_device(job):
    for chips in (1, 4, 16):
        spread = aot.spread_over(job, chips)
        assert (spread.parallel.fsdp, spread.accumulate) == (chips, 16 // chips)
        assert (spread.batch_size, spread.seed) == (job.batch_size, job.seed)
    assert aot.spread_over(job, 32) is None  # half a row each
    tensor = dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, tensor=2))
    assert aot.spread_over(tensor, 8).parallel.fsdp == 4
    assert aot.spread_over(tensor, 1) is None


def test_the_search_needs_a_rule_that_divides(job):
    whole = dataclasses.replace(job, parallel=Parallel())
    with pytest.raises(UserError, match=r"parallel/fsdp\.gin"):
        aot.smallest(whole)


@pytest.mark.parametrize(
    ("said", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. "
         "Exceeded hbm capacity by 1.75G.", 17.5),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (224.00G) exceeds available HBM (15.75G).", 224),
    ],
)  # fmt: skip
def test_shortage_is_named_with_what_helps(job, said, gib):
    program = setup.make(dataclasses.replace(job, parallel=Parallel(fsdp=2, rules={})))
    found = aot._explained(RuntimeError(said), program, accelerators.parse("v5e-8"))
    assert isinstance(found, aot.TooLarge) and found.needed == gib * 2**30
    assert f"{gib - 15.75:.1f} GiB too much" in found.message
    for remedy in ("fsdp", "accumulate", "remat", "more chips"):
        assert remedy in found.remedy


def test_another_complaint_stays_as_it_is(job):
    error = RuntimeError("INTERNAL: Mosaic failed to compile TPU kernel")
    program = setup.make(job)
    assert aot._explained(error, program, accelerators.parse("v5e-8")) is error


@pytest.mark.parametrize(("name", "extra"), [("v5e-16", "tpu"), ("h100-16", "cuda13")])
def test_no_compiler_is_said(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"slm_jax\[{extra}\]"):
        topologies.devices(accelerators.parse(name))


def test_gpus_fill_their_hosts():
    with pytest.raises(UserError, match="13 GPUs do not divide over 2 hosts"):
        topologies.devices(accelerators.parse("h100-13"))


def test_what_a_compiler_lets_pass_is_held_against_the_memory(job, monkeypatch):
    """That for GPUs, unlike that for TPUs, does not refuse what does not fit."""
    h100 = accelerators.parse("h100-1")
    small = dataclasses.replace(h100, chip=dataclasses.replace(h100.chip, memory=2**20))
    monkeypatch.setattr(topologies, "devices", lambda _: jax.devices()[:1])
    alone = dataclasses.replace(job, parallel=Parallel(), seq_len=128)
    peak = aot.compile_step(alone, "h100-1").peak
    monkeypatch.setattr(accelerators, "parse", lambda _: small)
    with pytest.raises(aot.TooLarge, match=r"h100-1 has 0\.00") as caught:
        aot.compile_step(alone, "h100-1")
    assert caught.value.needed == pytest.approx(peak, rel=0.01)
    assert "accumulate" in caught.value.remedy


def test_kernels_are_told_from_other_calls():
    text = """
      custom_call_target="tpu_custom_call", custom_call_target="__gpu$xla.gpu.triton",
      custom_call_target="__cudnn$fmhaSoftmaxBackward", custom_call_target="__cublas$gemm"
    """
    assert len(aot._KERNEL.findall(text)) == 3


def test_collectives_are_counted_once_each():
    """An asynchronous one is two instructions; names and operands are none."""
    text = """
      %all-gather.1 = bf16[4,8]{1,0} all-gather(%x), replica_groups={}
      %ag = (f32[4], f32[8]) all-gather-start(%all-gather.1), dimensions={0}
      %agd = f32[8] all-gather-done(%ag)
      ROOT %r = f32[8] reduce-scatter(%all-reduce.3), to_apply=%add
    """
    assert aot._CALL.findall(text) == ["all-gather", "all-gather", "reduce-scatter"]


aot_systems = runpy.run_path(str(REPO / "benchmarks" / "aot_systems.py"))
SYSTEMS = sorted(path.stem for path in (config.GIN_DIR / "systems").glob("*.gin"))
RESULTS = sorted(aot_systems["RESULTS"].glob("*.json"))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "taste"])
def test_every_system_takes_the_pretraining_job(name):
    job = config.load(aot_systems["files"](name))
    backbone = job.system.model.backbone
    assert (backbone.dtype, backbone.remat) == ("bfloat16", "full")
    assert aot.spread_over(job, 256).accumulate == 1


def in_tiles(leaf):
    """Bytes on one TPU: tiles of 8 x 128 numbers, of whichever two axes take the least."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = math.prod(shape) * leaf.dtype.itemsize
    if len(shape) < 2:
        return math.ceil(size / 512) * 512
    return min(
        size // (rows * lanes) * (math.ceil(rows / 8) * 8) * (math.ceil(lanes / 128) * 128)
        for rows, lanes in itertools.permutations(shape, 2)
    )


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_is_of_the_system_as_it_is(path):
    """The compiler's count of state and batch is that of today's shapes, on the same slice."""
    assert path.stem in SYSTEMS
    found = json.loads(path.read_text(encoding="utf-8"))
    flags = aot_systems["flags"](path.stem)
    assert found["command"] == shlex.join(["python", "launch/plan.py", *flags])
    accelerator = accelerators.parse(found["accelerator"])
    assert found["peak"] < found["limit"] == accelerator.chip.memory
    bindings = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    job = aot.spread_over(config.load(aot_systems["files"](path.stem), bindings), accelerator.chips)
    mesh = memory.mesh_of(job, accelerator)
    assert (found["mesh"], found["accumulate"]) == (dict(mesh.shape), job.accumulate)
    params = state.skeleton(lambda: job.system.build(nnx.Rngs(0)), job.parallel.rules, mesh).params
    moves = tree.flatten(trainable(params, job.trains))
    moving = optimizer.moving(job.optimizer, (path for path, on in moves.items() if on))
    whole = state.abstract_state(params, optimizer.make(job.optimizer, job.steps), moving)
    held = sum(map(in_tiles, jax.tree.leaves([whole, setup.batch_of(job, mesh)])))
    assert found["arguments"] == pytest.approx(held, rel=1e-3)


def test_the_page_has_the_results():
    assert aot_systems["table"]() in aot_systems["PAGE"].read_text(encoding="utf-8")


def test_the_search_compiles_only_what_may_fit(monkeypatch):
    """State and half of what is temporary rule a slice out, then what was wanted on another."""
    files = ["pods/taste_llama31_8b.gin"]
    job = plan.sized(config.load(files, ["BATCH_SIZE=16", "SEQ_LEN=1024"]))
    asked = []

    def compile_step(spread, name):  # in place of libtpu
        asked.append((name, spread.parallel.fsdp, spread.accumulate))
        if len(asked) == 1:
            raise aot.TooLarge("too large", "take more", needed=110 * GIB)
        return name

    monkeypatch.setattr(aot, "compile_step", compile_step)
    # A chip of four holds 22 GiB of parameters and moments, 15 of gradients and 4 of copies: v5e
    # has no room for that, nor v6e for half of the last two and of activations. Beside these the
    # compiler wanted 69 GiB: only v5p has them, of eight.
    assert aot.smallest(job) == "v5p-16"
    assert asked == [("v5p-8", 4, 4), ("v5p-16", 8, 2)]
