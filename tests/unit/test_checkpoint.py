"""Save and restore: another mesh, parts, wrong models, a full disk, what a crash leaves."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny_job
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import checkpoint, inventory, optimizer
from slm_jax.training.checkpoint import Checkpoints, Store
from slm_jax.training.optimizer import Optimizer

UPDATE = optimizer.make(Optimizer(), 10)


def mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def make_state(step, shape=(2, 4), rows=8):
    placed = NamedSharding(mesh(shape), P("fsdp", "data"))
    weight = jax.device_put(np.arange(rows * 8.0, dtype=np.float32).reshape(rows, 8) + step, placed)
    params = {"layers": {"q": {"kernel": weight}}, "norm": {"scale": jax.numpy.ones(3)}}
    return {"params": params, "opt": UPDATE.init(params), "step": jax.numpy.int32(step)}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def about(tmp_path):
    return {"config": tiny_job.gin(tmp_path / "data", tmp_path), "streams": {"taste": "f1"}}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(run, steps, about, **settings):
    with Store(run, Checkpoints(**settings)) as store:
        for step in steps:
            store.save(make_state(step), step, about)


def test_restores_bitwise_on_another_mesh(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    wanted = make_state(0, shape=(4, 2))
    with Store(tmp_path, Checkpoints(every=1)) as store:
        assert store.latest == 1
        assert store.about(1) == about
        found = store.restore(abstract(wanted))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for ours, saved in zip(jax.tree.leaves(found), jax.tree.leaves(make_state(1)), strict=True):
        np.testing.assert_array_equal(ours, saved)
    kernel = found["params"]["layers"]["q"]["kernel"]
    assert kernel.sharding == wanted["params"]["layers"]["q"]["kernel"].sharding


def test_saves_when_due_and_keeps_the_newest(tmp_path, about):
    with Store(tmp_path, Checkpoints(every=2, keep=2)) as store:
        for step in range(1, 8):
            store.save(make_state(step), step, about, force=step == 7)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"6", "7"}


def test_the_best_is_a_number_and_of_equals_the_newest(tmp_path, about):
    best = {"every": 1, "keep": 1, "best": "text"}
    settings = {"Checkpoints.best": "text", "TrainJob.eval_every": 1}
    about |= {"config": tiny_job.gin("data", tmp_path, **settings)}
    losses = {1: float("nan"), 2: 3.0, 3: float("nan"), 4: 3.0, 5: 4.0, 6: float("nan"), 7: 5.0}
    with Store(tmp_path, Checkpoints(**best)) as store:
        for step, loss in losses.items():
            store.save(make_state(step), step, about, held_out={"text": loss})
    assert checkpoint.steps_in(tmp_path / "checkpoints") == [4, 7]
    assert checkpoint.find_step(tmp_path / "best").name == "4"


def test_params_alone_for_decoding(tmp_path, about):
    save(tmp_path, [2, 4], about, every=2)
    for path, step in [
        (tmp_path, 4),
        (tmp_path / "checkpoints", 4),
        (tmp_path / "checkpoints" / "2", 2),
    ]:
        loaded = checkpoint.load_params(path)
        assert loaded.step == step
        assert loaded.job == config.loads(about["config"])
        assert loaded.streams == {"taste": "f1"}
        kernel = loaded.params["layers"]["q"]["kernel"]
        np.testing.assert_array_equal(kernel, make_state(step)["params"]["layers"]["q"]["kernel"])
        assert len(kernel.sharding.device_set) == 1


def test_checkpoint_of_another_model_names_the_weights(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    other = abstract(make_state(0, rows=16))
    other["params"]["layers"]["k"] = other["params"]["layers"]["q"]
    with Store(tmp_path, Checkpoints()) as store, pytest.raises(UserError) as caught:
        store.restore(other)
    message = str(caught.value)
    assert "a checkpoint of another model" in message
    assert "missing: layers/k/kernel" in message
    assert "misshapen: layers/q/kernel (8, 8), wanted (16, 8)" in message
    with pytest.raises(UserError, match="unexpected: norm/scale"):
        params = {"layers": abstract(make_state(0))["params"]["layers"]}
        checkpoint.load_params(tmp_path, params)


def test_another_optimizer_is_refused(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    wanted = abstract(make_state(0))
    flat = tree.flatten(wanted["params"])
    kernels = tree.unflatten({path: leaf for path, leaf in flat.items() if "kernel" in path})
    wanted["opt"] = jax.eval_shape(UPDATE.init, kernels)
    with (
        Store(tmp_path, Checkpoints()) as store,
        pytest.raises(UserError, match=r"is of another optimizer: 2 .*mu/norm/scale"),
    ):
        store.restore(wanted)


def test_an_average_is_not_begun_in_the_middle(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    wanted = abstract(make_state(0))
    wanted["ema"] = wanted["params"]
    with Store(tmp_path, Checkpoints()) as store, pytest.raises(UserError, match="ema/layers/q"):
        store.restore(wanted)


def test_no_checkpoint_and_unreadable_ones(tmp_path, about):
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load_params(tmp_path / "nowhere")
    save(tmp_path, [1], about, every=1)
    folder = tmp_path / "checkpoints" / "1"
    with pytest.raises(UserError, match="holds no config"):
        save(tmp_path / "other", [1], {}, every=1)
        checkpoint.load_params(tmp_path / "other")
    truncate(folder / "params" / "_METADATA")
    with pytest.raises(UserError, match=r"is damaged: params/_METADATA has \d+ of \d+ bytes"):
        checkpoint.load_params(folder)
    (folder / inventory.FILE).unlink()
    with pytest.raises(UserError, match="no readable parameters"):
        checkpoint.load_params(folder)


def test_every_file_of_a_checkpoint_is_missed(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    folder = tmp_path / "checkpoints" / "1"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != inventory.FILE]
    assert len(files) > 10
    for path in files:
        whole, name = path.read_bytes(), path.relative_to(folder).as_posix()
        path.unlink()
        assert inventory.damage(folder) == f"{name} is missing"
        path.write_bytes(whole[:-1])
        assert inventory.damage(folder) == f"{name} has {len(whole) - 1} of {len(whole)} bytes"
        path.write_bytes(whole)
        assert inventory.damage(folder) is None
    truncate(folder / inventory.FILE)
    assert inventory.damage(folder) == f"{inventory.FILE} is cut short"


def test_truncated_newest_checkpoints_are_set_aside_and_the_one_before_used(
    tmp_path, about, capsys
):
    folders = tmp_path / "checkpoints"
    for _ in range(2):  # the same steps once more: what was set aside before stays
        save(tmp_path, [1, 2, 3], about, every=1, keep=3)
        data = max(folders.glob("3/params/**/d/*"), key=lambda path: path.stat().st_size)
        truncate(data)
        (folders / "2" / "opt" / "manifest.ocdbt").unlink()
        with Store(tmp_path, Checkpoints(every=1, keep=3)) as store:
            assert store.latest == 1
            found = store.restore(abstract(make_state(0)))
        assert int(found["step"]) == 1
        said = capsys.readouterr().out
        assert f"{folders / '3'} is damaged: {data.relative_to(folders / '3')} has" in said
        assert f"{folders / '2'} is damaged: opt/manifest.ocdbt is missing" in said
        assert said.count(f"{folders / '1'} is used instead") == 2
    aside = tmp_path / inventory.ASIDE
    assert {path.name for path in aside.iterdir()} == {"2", "2-2", "3", "3-2"}
    assert (aside / "3-2" / data.relative_to(folders / "3")).exists()


def test_a_run_with_no_whole_checkpoint_is_not_begun_again(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    truncate(tmp_path / "checkpoints" / "1" / "opt" / "_METADATA")
    with Store(tmp_path, Checkpoints()) as store, pytest.raises(UserError, match="is damaged"):
        store.restore(abstract(make_state(0)))
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_checkpoints_of_older_programs_have_no_list(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    (tmp_path / "checkpoints" / "1" / inventory.FILE).unlink()
    with Store(tmp_path, Checkpoints()) as store:
        assert int(store.restore(abstract(make_state(0)))["step"]) == 1


def test_leftovers_of_a_killed_save_are_not_checkpoints(tmp_path, about):
    save(tmp_path, [1], about, every=1)
    killed = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    killed.mkdir()
    (killed / "half").write_text("written")
    assert checkpoint.find_step(tmp_path).name == "1"
    with Store(tmp_path, Checkpoints(every=1)) as store:
        assert store.latest == 1
        store.save(make_state(2), 2, about)
    assert checkpoint.load_params(tmp_path).step == 2


def test_full_disk_is_one_error_and_older_checkpoints_survive(tmp_path, about):
    """A file size limit of the process stands in for the full disk: writes fail half way."""
    save(tmp_path, [1], about, every=1)
    code = textwrap.dedent(
        f"""
        import resource, signal, pathlib
        import numpy as np, jax
        from slm_jax.training.checkpoint import Store, Checkpoints
        from slm_jax.errors import UserError
        state = {{"params": {{"w": jax.numpy.asarray(np.random.rand(1 << 20))}},
                  "opt": {{}}, "step": jax.numpy.int32(2)}}
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
        try:
            with Store(pathlib.Path({str(tmp_path)!r}), Checkpoints(every=1)) as store:
                store.save(state, 2, {{"config": ""}})
        except UserError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert "no room to save a checkpoint" in done.stdout, done.stdout + done.stderr
    assert "older checkpoints are intact" in done.stdout
    assert checkpoint.load_params(tmp_path).step == 1


@pytest.mark.parametrize("bad", [{"every": 0}, {"keep": 0}])
def test_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Checkpoints(**bad)
