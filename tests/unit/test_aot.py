"""What of the ahead-of-time check needs no TPU compiler; the rest is in tests/aot_tpu."""

import dataclasses
import importlib.util

import pytest

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.planning import accelerators, aot, topologies
from slm_jax.training import setup
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
        spread = aot._spread(job, chips)
        assert (spread.parallel.fsdp, spread.accumulate) == (chips, 16 // chips)
        assert (spread.batch_size, spread.seed) == (job.batch_size, job.seed)
    assert aot._spread(job, 32) is None  # half a row each
    tensor = dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, tensor=2))
    assert aot._spread(tensor, 8).parallel.fsdp == 4
    assert aot._spread(tensor, 1) is None


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


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"slm_jax\[tpu\]"):
        topologies.devices(accelerators.parse("v5e-16"))


def test_collectives_are_counted_once_each():
    """An asynchronous one is two instructions; names and operands are none."""
    text = """
      %all-gather.1 = bf16[4,8]{1,0} all-gather(%x), replica_groups={}
      %ag = (f32[4], f32[8]) all-gather-start(%all-gather.1), dimensions={0}
      %agd = f32[8] all-gather-done(%ag)
      ROOT %r = f32[8] reduce-scatter(%all-reduce.3), to_apply=%add
    """
    assert aot._CALL.findall(text) == ["all-gather", "all-gather", "reduce-scatter"]


SYSTEMS = sorted(path.stem for path in (config.GIN_DIR / "systems").glob("*.gin"))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "taste"])
def test_every_system_takes_the_pretraining_job(name):
    job = config.load(["pretrain.gin", f"systems/{name}.gin", "parallel/fsdp.gin"])
    backbone = job.system.model.backbone
    assert (backbone.dtype, backbone.remat) == ("bfloat16", "full")
    assert aot._spread(job, 256).accumulate == 1
