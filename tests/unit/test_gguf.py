import gguf
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.interop.gguf import read
from slm_jax.interop.llm import llm_config, load_llm

QUANTS = gguf.GGMLQuantizationType


def write(path, fields=(), tensors=(), architecture="llama"):
    """fields: (writer method, key, value); tensors: (name, array, quantisation or None)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for method, key, value in fields:
        getattr(writer, f"add_{method}")(key, value)
    for name, array, kind in tensors:
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VALUES = st.one_of(
    st.tuples(st.just("string"), st.text(min_size=1)),  # the writer drops empty ones
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("int32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("uint64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("float32"), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just("array"), st.lists(st.text(), min_size=1)),
    st.tuples(st.just("array"), st.lists(st.integers(-9, 9), min_size=1)),
)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(VALUES, max_size=6))
def test_metadata_survives(tmp_path_factory, values):
    fields = [(method, f"key.{i}", value) for i, (method, value) in enumerate(values)]
    metadata = read(write(tmp_path_factory.mktemp("x") / "x.gguf", fields)).metadata
    for _, key, value in fields:
        assert list(metadata[key]) == value if isinstance(value, list) else metadata[key] == value
    assert metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("kind", [QUANTS.Q4_1, QUANTS.Q8_0, QUANTS.BF16, QUANTS.F16, None])
def test_tensors_are_those_of_the_published_reader(tmp_path, kind):
    array = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    path = write(
        tmp_path / "x.gguf", tensors=[("odd", np.ones(3, np.float32), None), ("x", array, kind)]
    )
    tensor = read(path).tensors["x"]
    theirs = gguf.GGUFReader(str(path)).tensors[1]
    got = tensor.dequantize()
    assert tensor.shape == got.shape == (3, 64) and got.dtype == np.float32
    np.testing.assert_array_equal(got, gguf.dequantize(theirs.data, theirs.tensor_type))
    np.testing.assert_allclose(got, array, atol=0.3)


def test_truncation_at_any_byte_is_named(tmp_path):
    array = np.zeros((2, 32), np.float32)
    path = write(
        tmp_path / "x.gguf",
        [("string", "a", "hello"), ("array", "b", ["x", "y"])],
        [("w", array, None)],
    )
    whole = path.read_bytes()
    for keep in [0, *range(1, len(whole), 7)]:
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"x\.gguf is truncated or not a GGUF file"):
            read(path)


def test_other_files_are_named(tmp_path):
    (tmp_path / "x.gguf").write_text("PK not a model at all, but long enough to have a header")
    with pytest.raises(UserError, match="does not start with 'GGUF'"):
        read(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="does not exist"):
        llm_config(tmp_path / "none.gguf")
    write(tmp_path / "part.gguf", [("uint16", "split.count", 3)])
    with pytest.raises(UserError, match="one of 3 parts"):
        llm_config(tmp_path / "part.gguf")


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("gemma", [], "architecture gemma, known are llama, qwen2, qwen3"),
        ("llama", [("uint32", "llama.expert_count", 8)], "mixture of experts"),
        ("llama", [], "lacks 'embedding_length'"),
    ],
)
def test_models_that_the_backbone_cannot_run_are_refused(tmp_path, architecture, fields, message):
    path = write(tmp_path / "x.gguf", fields, architecture=architecture)
    with pytest.raises(UserError, match=message):
        llm_config(path)


def test_weights_that_do_not_fit_are_named(tmp_path):
    sizes = {"embedding_length": 8, "block_count": 1, "feed_forward_length": 4}
    sizes |= {"attention.head_count": 2}
    fields = [("uint32", f"llama.{key}", value) for key, value in sizes.items()]
    fields += [("float32", "llama.attention.layer_norm_rms_epsilon", 1e-5)]
    tensors = [("token_embd.weight", np.zeros((5, 8), np.float32), None)]
    tensors += [("blk.0.attn_norm.weight", np.zeros(9, np.float32), None)]
    path = write(tmp_path / "x.gguf", fields, tensors)
    with pytest.raises(UserError) as error:
        load_llm(path)
    assert "missing: output_norm.weight, blk.0.ffn_norm.weight" in str(error.value)
    assert "misshapen: blk.0.attn_norm.weight (9,), wanted (8,)" in str(error.value)
