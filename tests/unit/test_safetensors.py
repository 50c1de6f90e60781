import json

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as published

from slm_jax.errors import UserError
from slm_jax.interop import safetensors

ARRAYS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=5,
)


def fill(spec):
    rng = np.random.default_rng(0)
    return {n: rng.integers(0, 9, shape).astype(dtype) for n, (dtype, shape) in spec.items()}


def write(path, arrays):
    safetensors.write(path, {n: (a.dtype, a.shape) for n, a in arrays.items()}, arrays.values())


def same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(ARRAYS)
def test_reads_and_writes_what_the_published_package_does(tmp_path_factory, spec):
    folder, arrays = tmp_path_factory.mktemp("x"), fill(spec)
    write(folder / "ours", arrays)
    same(safetensors.read(folder / "ours"), arrays)
    same(published.load_file(folder / "ours"), arrays)
    published.save_file(arrays, folder / "theirs")
    same(safetensors.read(folder / "theirs"), arrays)


def test_bfloat16(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)}
    write(tmp_path / "x", arrays)
    same(safetensors.read(tmp_path / "x"), arrays)
    header = (tmp_path / "x").read_bytes()[8:]
    assert json.JSONDecoder().raw_decode(header.decode(errors="ignore"))[0]["x"]["dtype"] == "BF16"


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    write(path, {"x": np.ones((3, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        safetensors.read(path)


def test_another_file_or_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        safetensors.read(tmp_path / "none")
    (tmp_path / "text").write_text("PK not safetensors at all")
    with pytest.raises(UserError, match="not a safetensors file"):
        safetensors.read(tmp_path / "text")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    write(path, {"a": np.ones(3, np.float32)})

    def arrays():
        yield np.zeros(3, np.float32)
        raise OSError("no space left on device")

    spec = (np.dtype(np.float32), (3,))
    with pytest.raises(OSError, match="no space"):
        safetensors.write(path, {"a": spec, "b": spec}, arrays())
    np.testing.assert_array_equal(safetensors.read(path)["a"], 1)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
