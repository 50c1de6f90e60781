import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from slm_jax.errors import UserError
from slm_jax.interop import ctranslate2

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def string(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def model_bytes(weights: dict, aliases: dict, version: int = 6) -> bytes:
    """A model as the format's description has it, written without the reader's help."""
    data = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<I", 3)
    data += struct.pack("<I", len(weights))
    for name, array in weights.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", CODES[array.dtype.name], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(string(a) + string(b) for a, b in aliases.items())


ARRAYS = st.sampled_from(["float32", "int8", "int16", "int32", "float16"]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4))
)


@settings(max_examples=25, deadline=None)
@given(weights=st.dictionaries(st.text("abc/_0", min_size=1, max_size=8), ARRAYS, min_size=1))
def test_reads_what_was_written(tmp_path_factory, weights):
    weights = {name: array for name, array in weights.items() if not name.endswith("_scale")}
    path = tmp_path_factory.mktemp("ct2") / "model.bin"
    aliases = {"z": next(iter(weights))} if weights else {}
    path.write_bytes(model_bytes(weights, aliases))
    model = ctranslate2.read(path)
    assert (model.spec, model.revision) == ("WhisperSpec", 3)
    assert set(model.weights) == {*weights, *aliases}
    for name, array in weights.items():
        assert model.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(model.weights[name], array)


def test_reads_bfloat16_and_dequantizes_int8(tmp_path):
    half = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    quantized, scale = np.array([[127, -64], [10, 0]], np.int8), np.array([127, 5], np.float32)
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes({"h": half, "w": quantized, "w_scale": scale}, {}))
    weights = ctranslate2.read(path).weights
    assert weights["h"].astype(np.float32).tolist() == [1.5, -2.0]
    assert set(weights) == {"h", "w"}
    np.testing.assert_allclose(weights["w"], [[1.0, -64 / 127], [2.0, 0.0]])


@pytest.mark.parametrize("keep", [0, 3, 20, 60, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    data = model_bytes({"weight": np.ones((4, 4), np.float32)}, {"alias": "weight"})
    path = tmp_path / "model.bin"
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"model\.bin.*(empty|ends at byte)"):
        ctranslate2.read(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"this is a text file, not a model, whatever its name says" * 9)
    with pytest.raises(UserError, match="format version"):
        ctranslate2.read(path)
    with pytest.raises(UserError, match=r"model\.bin"):
        ctranslate2.read(tmp_path / "absent" / "model.bin")
