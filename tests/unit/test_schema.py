import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slm_jax.data import schema
from slm_jax.data.schema import AudioItem, StreamItem, Utterance, Word

finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.builds(
    Word,
    text=st.text(max_size=8),
    start=finite,
    end=finite,
    confidence=st.sampled_from([1.0, 0.25]),
    turn=st.integers(0, 3),
    role=st.sampled_from(["speaker", "assistant"]),
    channel=st.integers(0, 1),
)
utterances = st.builds(
    Utterance,
    id=st.text(max_size=8),
    words=st.lists(words, max_size=6).map(tuple),
    language=st.just("en"),
    speaker=st.text(max_size=4),
    duration=finite,
    source=st.text(max_size=4),
    text=st.text(max_size=20),
)


@settings(max_examples=25, deadline=None)
@given(utterances)
def test_utterance_round_trip(utterance):
    payload = schema.encode(utterance)
    assert schema.decode("words", utterance.id, payload) == utterance
    assert schema.encode(schema.decode("words", utterance.id, payload)) == payload


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        np.int32,
        st.tuples(st.integers(0, 5), st.integers(1, 4)),
        elements=st.one_of(st.integers(0, 300), st.integers(-(2**31), 2**31 - 1)),
    ),
    st.booleans(),
)
def test_codes_round_trip(values, indexed):
    index = np.arange(len(values), dtype=np.int32) // 2 if indexed else None
    back = schema.decode("codes", "u", schema.encode(StreamItem("u", values, index)))
    assert back.values.dtype == np.int32
    np.testing.assert_array_equal(back.values, values)
    if indexed:
        np.testing.assert_array_equal(back.index, index)
    else:
        assert back.index is None


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(1, 6))))
def test_vectors_round_trip_bitwise(values):
    back = schema.decode("continuous", "u", schema.encode(StreamItem("u", values)))
    assert back.values.dtype == np.float32
    assert back.values.tobytes() == values.tobytes()


@pytest.mark.parametrize(("top", "width"), [(255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_codes_take_the_narrowest_bytes(top, width):
    sizes = [len(schema.encode(StreamItem("u", np.full((n, 1), top)))) for n in (0, 10)]
    assert sizes[1] - sizes[0] == 10 * width


def test_audio_and_numpy_times():
    assert schema.decode("audio", "u", schema.encode(AudioItem("u", b"fLaC"))).flac == b"fLaC"
    word = Word("a", np.float32(0.5), np.float64(0.75))
    utterance = Utterance("u", (word,), "en", "", np.float32(1), "s", "a")
    assert schema.decode("words", "u", schema.encode(utterance)) == utterance


@pytest.mark.parametrize("payload", [b"", b"\x07" + bytes(9), b"\0\0\2\0\0\0\3\0\0\0"])
def test_a_payload_of_another_kind_is_refused(payload):
    with pytest.raises(ValueError, match=r"stream|payload"):
        schema.decode("codes", "u", payload)


def test_malformed_items_are_refused():
    with pytest.raises(ValueError, match="levels"):
        schema.encode(StreamItem("u", np.zeros(3, np.int32)))
    with pytest.raises(ValueError, match="index"):
        schema.encode(StreamItem("u", np.zeros((3, 1), np.int32), np.zeros(2, np.int32)))
    with pytest.raises(ValueError, match="JSON"):
        schema.encode(Utterance("u", (), "en", "", float("nan"), "s", ""))
