"""gin text to dataclasses: values, overrides, round trips, and one clear error per mistake."""

import argparse

import pytest
import tiny_job
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.training.optimizer import Optimizer
from slm_jax.training.partitioning import Parallel


def write(tmp_path, text, name="job.gin"):
    path = tmp_path / name
    path.write_text(text)
    return path


def load_error(files, bindings=(), root="Optimizer"):
    with pytest.raises(UserError) as caught:
        config.load(files, bindings, root=root)
    return str(caught.value)


def test_macro_override_and_later_file_win(tmp_path):
    base = write(tmp_path, "RATE = 1e-3\nOptimizer.learning_rate = %RATE\nOptimizer.b1 = 0.8\n")
    second = write(tmp_path, "Optimizer.b1 = 0.7\n", "second.gin")
    job = config.load([base, second], ["RATE=2e-4"], root="Optimizer")
    assert job == Optimizer(learning_rate=2e-4, b1=0.7)


def test_loads_are_independent(tmp_path):
    first = config.load([write(tmp_path, "Optimizer.b1 = 0.5\n")], root="Optimizer")
    assert first.b1 == 0.5
    assert config.load([write(tmp_path, "", "empty.gin")], root="Optimizer") == Optimizer()


def test_int_becomes_float_and_list_tuple():
    job = config.loads("Optimizer.learning_rate = 1\n", root="Optimizer")
    assert isinstance(job.learning_rate, float)
    rules = "Parallel.rules = {'embed': ['data', 'fsdp'], 'mlp': 'tensor', 'codes': None}\n"
    parallel = config.loads(rules, root="Parallel")
    assert parallel.rules == {"embed": ("data", "fsdp"), "mlp": "tensor", "codes": None}


def test_include_is_relative_to_its_file(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path, "Optimizer.b1 = 0.4\n", "parts/inner.gin")
    write(tmp_path, "include 'inner.gin'\n", "parts/outer.gin")
    assert config.load([tmp_path / "parts/outer.gin"], root="Optimizer").b1 == 0.4


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("\nOptimzer.b1 = 0.5\n", 2, ["unknown class 'Optimzer'", "Did you mean Optimizer?"]),
        ("Optimizer.learning_rat = 1.0\n", 1, ["'learning_rat'", "mean learning_rate?"]),
        ("Optimizer.b1 = '0.5'\n", 1, ["Optimizer.b1 must be float", "'0.5'"]),
        ("Optimizer.warmup_steps = 2.5\n", 1, ["must be int", "2.5"]),
        ("Optimizer.warmup_steps = True\n", 1, ["must be int", "True"]),
        (
            "Optimizer.b2 = 0.9\nOptimizer.b1 = 1.5\n",
            2,
            ["b1 must be at least 0 and below 1, got 1.5"],
        ),
        ("RATE = -1.0\nOptimizer.learning_rate = %RATE\n", 1, ["learning_rate must be above 0"]),
        ("RATE = 1.0\nOptimizer.b1 = %RATES\n", 2, ["%RATES is not set", "mean %RATE?"]),
        ("RATES = 1.0\nRATE = 0.5\nOptimizer.b1 = %RATE\n", 1, ["nothing uses %RATES"]),
        ("Parallel.data = 2\n", 1, ["Optimizer uses no @Parallel()"]),
        ("import os\n", 1, ["gin files import nothing"]),
        ("Optimizer.b1 = 0.5 0.6\n", 1, ["not gin syntax"]),
        ("Optimizer.b1 = @Optimizer\n", 1, ["is the class", "@Optimizer()"]),
        ("A = %B\nB = %A\nOptimizer.b1 = %A\n", 2, ["refers to itself"]),
    ],
)
def test_mistake_names_file_line_and_cure(tmp_path, text, line, parts):
    path = write(tmp_path, text)
    message = load_error([path])
    for part in [f"{path}, line {line}", *parts]:
        assert part in message, message


def test_mistaken_flag_is_quoted(tmp_path):
    path = write(tmp_path, "RATE = 1.0\nOptimizer.learning_rate = %RATE\n")
    unknown = load_error([path], ["RAT=0.1"])
    assert "--gin.RAT=0.1: no gin file defines RAT" in unknown
    assert "Did you mean RATE?" in unknown
    assert "--gin.RATE=fast: Optimizer.learning_rate must be float" in load_error(
        [path], ["RATE=fast"]
    )
    assert "mean warmup_steps?" in load_error([path], ["Optimizer.warmup_step=3"])


def test_a_replaced_reference_leaves_nothing_unused(tmp_path):
    text = "RANK = 4\nTrainJob.llm = @Llm()\nLlm.lora_rank = %RANK\nBackboneConfig.lora_rank = 0\n"
    base = write(
        tmp_path, tiny_job.gin(tmp_path, tmp_path, **{"BackboneConfig.lora_rank": 2}) + text
    )
    assert config.load([base]).llm.lora_rank == 4
    assert config.load([base], ["TrainJob.llm=None"]).llm is None


def test_missing_file_names_the_nearest(tmp_path):
    message = load_error(["parallel/fsp.gin"])
    assert "parallel/fsp.gin found neither by path nor in" in message
    assert "Nearest: parallel/fsdp.gin" in message


def test_unquoted_text_on_the_command_line_is_a_string(tmp_path):
    path = write(tmp_path, "Parallel.rules = {'embed': %AXIS}\nAXIS = 'data'\n")
    assert config.load([path], ["AXIS=fsdp"], root="Parallel").rules == {"embed": "fsdp"}


def test_flags(tmp_path):
    path = write(tmp_path, "RATE = 1.0\nOptimizer.learning_rate = %RATE\n")
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt")
    argv = [f"--gin_file={path}", "--gin.RATE=0.5", "--prompt=x"]
    job, args = config.from_flags("Optimizer", parser, argv)
    assert (job.learning_rate, args.prompt) == (0.5, "x")
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt_text")
    with pytest.raises(UserError, match="Did you mean --prompt_text"):
        config.from_flags("Optimizer", parser, [f"--gin_file={path}", "--prompt_txt=x"])


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(1e-8, 10),
    warmup=st.integers(0, 10**6),
    rules=st.dictionaries(
        st.text("abcdef_", min_size=1, max_size=8),
        st.one_of(st.none(), st.sampled_from(["data", "tensor"]), st.just(("data", "fsdp"))),
        max_size=5,
    ),
)
def test_dump_reads_back_equal(rate, warmup, rules):
    for value in (Optimizer(learning_rate=rate, warmup_steps=warmup), Parallel(rules=rules)):
        text = config.dump(value)
        assert config.loads(text, root=type(value).__name__) == value
