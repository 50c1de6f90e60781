import jax
import numpy as np
import pytest
from flax import nnx

from slm_jax.data.schema import StreamItem
from slm_jax.decoding.engine import DecodeLimits, Engine, Request
from slm_jax.decoding.samplers import Sampling
from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.models.backbone import BackboneConfig
from slm_jax.models.speech_lm import SpeechLM, SpeechLMConfig
from slm_jax.nn.tree import merge, pure_params

V, EOS, CODES = 24, 0, (5, 6, 7)
# Ids: 0 EOS, 1 BOS, 2..11 begin a word, 12..21 go on with one, 22 and 23 cannot be spoken.
VOCABULARY = Vocabulary(
    starts=np.array([i == EOS or 2 <= i < 12 for i in range(V)]),
    spoken=np.array([i == EOS or 2 <= i < 22 for i in range(V)]),
    eos=EOS,
)


LAYOUT = Layout(
    "test",
    Par(
        (
            Text("text-tiny", V, bos=1, eos=EOS),
            Delay(Stream("taste", CODES), by=(1, 2, 3), clock="word"),
        )
    ),
)
PENALTY = 1.3
ROOM = 32  # columns for five words of four ids and the flush, in buckets of 32
PLAIN = Sampling()


@pytest.fixture(scope="module")
def model():
    backbone = BackboneConfig(
        vocab_size=V, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=32
    )
    # Speech weighs as much as text, so that wrong codes in the cache would show; and so do the
    # words that the heads read, so that a wrong column of them would.
    config = SpeechLMConfig(
        CODES, backbone, code_width=8, head="word_tokens", fusion_init=(0.0, 0.0)
    )
    return SpeechLM(config, nnx.Rngs(0))


def record(words, seed=0):
    rng = np.random.default_rng(seed)
    ids, index = [], []
    for word in range(words):
        pieces = [rng.integers(2, 12), *rng.integers(12, 22, word % 3)]
        ids += pieces
        index += [word] * len(pieces)
    codes = np.stack([rng.integers(0, size, words) for size in CODES], 1)
    return {
        "text-tiny": StreamItem("r", np.array(ids, np.int32)[:, None], np.array(index, np.int32)),
        "taste": StreamItem("r", codes.astype(np.int32)),
    }


def request(words, seed=0):
    joined = record(words, seed)
    return Request(LAYOUT.arrange_prompt(joined), joined["taste"].values)


def engine_of(model, text=PLAIN, speech=PLAIN, min_words=2, max_words=5, **limits):
    limits = DecodeLimits(min_words, max_words, **limits)
    return Engine(model, LAYOUT, VOCABULARY, text=text, speech=speech, limits=limits)


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model, text=Sampling(repetition_penalty=PENALTY))


@pytest.fixture(scope="module")
def full_forward(model):
    graphdef, params = pure_params(model)
    run = jax.jit(lambda params, batch: merge(graphdef, params)(batch))

    def forward(grid):
        size = grid.tokens.shape[1]
        tokens = np.pad(grid.tokens, ((0, 0), (0, 64 - size)))[None]
        batch = {
            "tokens": tokens,
            "positions": np.arange(64)[None],
            "segment_ids": (np.arange(64) < size)[None].astype(np.int32),
            "origins": np.pad(LAYOUT.origins(grid.clock), ((0, 0), (0, 64 - size)))[None],
        }
        return jax.device_get(run(params, batch))

    return forward


def chosen_text(logits, grid, column, own):
    """The greedy choice among allowed ids, by other means than the engine's."""
    seen = sorted(set(grid.content[0, :column].tolist()))
    logits = logits.copy()
    logits[seen] = [x / PENALTY if x > 0 else x * PENALTY for x in logits[seen]]
    allowed = VOCABULARY.spoken & (np.arange(V) != EOS)
    if own <= 0:
        allowed &= VOCABULARY.starts
    allowed[EOS] = own >= 2
    choice = int(np.where(allowed, logits, -np.inf).argmax())
    return EOS if own >= 5 and VOCABULARY.starts[choice] else choice


def test_cached_steps_choose_what_the_full_forward_pass_chooses(engine, full_forward):
    requests = [request(4, 1), request(1, 2), request(2, 3)]
    for one, grid in zip(requests, engine.generate(requests), strict=True):
        outputs = full_forward(grid)
        begun, known = one.prompt.content.shape[1], len(one.codes)
        np.testing.assert_array_equal(grid.content[:, :begun], one.prompt.content)
        texts = codes = 0
        for column in range(begun, grid.content.shape[1]):
            word, before = int(grid.clock[column]), int(grid.clock[column - 1])
            if grid.content[0, column - 1] != EOS:
                logits = outputs.text_logits[0, column - 1]
                expected = chosen_text(logits, grid, column, own=before + 1 - known)
                expected = EOS if column - begun >= ROOM - LAYOUT.tail else expected
                assert grid.content[0, column] == expected
                texts += 1
            for level, row in enumerate(LAYOUT.rows[1:]):
                code = grid.content[1 + level, column]
                if word != before and word - row.delay >= known and code < row.classes:
                    assert code == outputs.speech_logits[level][0, column - 1].argmax()
                    codes += 1
        words = int(LAYOUT.restore(grid)["text-tiny"].index[-1]) + 1
        assert texts > words - known
        assert codes == len(CODES) * (words - known)


def test_grids_restore_to_whole_words_with_codes(engine):
    requests = [request(3, 4), request(1, 5), request(2, 6)]
    for one, grid in zip(requests, engine.generate(requests), strict=True):
        streams = LAYOUT.restore(grid)
        codes, text = streams["taste"].values, streams["text-tiny"]
        np.testing.assert_array_equal(codes[: len(one.codes)], one.codes)
        words = int(text.index[-1]) + 1
        assert len(codes) == words
        assert len(one.codes) + 2 <= words <= len(one.codes) + 5
        assert VOCABULARY.spoken[text.values].all()
        # The same streams, arranged as in training, give the same grid.
        again = LAYOUT.arrange(
            {"text-tiny": StreamItem("r", text.values, text.index), "taste": StreamItem("r", codes)}
        )
        np.testing.assert_array_equal(again.content, grid.content)


def test_a_row_does_not_depend_on_its_batch(engine):
    ours, others = request(2, 7), [request(7, 8), request(1, 9)]
    one = engine.generate([ours, request(1, 1), request(3, 2)])[0]
    other = engine.generate([*others, ours])[2]
    np.testing.assert_array_equal(one.content, other.content)


def test_given_text_is_written_and_the_model_chooses_its_codes(model, full_forward):
    empty = {
        "text-tiny": StreamItem("r", np.zeros((0, 1), np.int32), np.zeros(0, np.int32)),
        "taste": StreamItem("r", np.zeros((0, 3), np.int32)),
    }
    prompt, codes = LAYOUT.arrange_prompt(empty), np.zeros((0, 3), np.int32)
    given = [3, 14, 5, 6]
    start = Request(prompt, codes, text=given, text_words=3)
    grid = engine_of(model, min_words=1, max_words=2).generate([start])[0]
    streams = LAYOUT.restore(grid)
    text = streams["text-tiny"].values[:, 0]
    assert text[:4].tolist() == given
    assert VOCABULARY.starts[text[4]]
    assert 3 + 1 <= len(streams["taste"].values) <= 3 + 2
    first = int(np.argmax(grid.clock == 1))  # where word 0's first level is written
    assert grid.content[1, first] == full_forward(grid).speech_logits[0][0, first - 1].argmax()


def test_sampling_follows_the_seed_and_no_room_still_ends_with_all_codes(model):
    """At one id a word there is no room for five words of several ids."""
    warm = Sampling(temperature=1.5)
    engine = engine_of(model, text=warm, speech=warm, min_words=5, ids_per_word=1)
    requests = [request(2, seed) for seed in range(3)]
    one, same, other = (engine.generate(requests, seed) for seed in (0, 0, 1))
    for left, right in zip(one, same, strict=True):
        np.testing.assert_array_equal(left.content, right.content)
    assert any(not np.array_equal(a.content, b.content) for a, b in zip(one, other, strict=True))
    for grid in one + other:
        streams = LAYOUT.restore(grid)
        assert grid.content[0, -1] == EOS
        assert len(streams["taste"].values) == streams["text-tiny"].index[-1] + 1


def test_limits_out_of_range_are_named():
    with pytest.raises(ValueError, match="min_words"):
        DecodeLimits(min_words=9, max_words=3)
    with pytest.raises(ValueError, match="ids_per_word"):
        DecodeLimits(ids_per_word=0)
