import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from slm_jax.data.schema import StreamItem, Utterance, Word
from slm_jax.evaluation import language_model
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.models.speech_lm import SpeechLM, SpeechLMConfig
from slm_jax.nn.tree import merge, pure_params

VOCAB, CODES = 20, (4, 6)
LAYOUT = Layout(
    "tiny",
    Par(
        (
            Text("text-tiny", VOCAB, bos=1, eos=0),
            Delay(Stream("taste", CODES, weight=0.5), by=(1, 2), clock="word"),
        )
    ),
)


def record(i):
    rng = np.random.default_rng(i)
    words = rng.integers(1, 9)
    ids = rng.integers(2, VOCAB, 2 * words)
    codes = np.stack([rng.integers(0, size, words) for size in CODES], 1).astype(np.int32)
    spoken = tuple(Word(f"w{id % 5}", 0.3 * w, 0.3 * w + 0.2) for w, id in enumerate(ids[::2]))
    return {
        "words": Utterance(f"u{i}", spoken, "en", "", 0.3 * words, "", ""),
        "text-tiny": StreamItem(
            f"u{i}", ids[:, None].astype(np.int32), np.repeat(np.arange(words), 2).astype(np.int32)
        ),
        "taste": StreamItem(f"u{i}", codes),
    }


@pytest.fixture(scope="module")
def scored():
    config = BackboneConfig(
        vocab_size=VOCAB, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=16
    )
    sizes = SpeechLMConfig(CODES, config, code_width=4, head="word_tokens")
    model = SpeechLM(sizes, nnx.Rngs(0))
    reference = Backbone(config, nnx.Rngs(1))
    train, held_out = [record(i) for i in range(20)], [record(i) for i in range(100, 107)]
    results = language_model.evaluate(model, reference, LAYOUT, train, held_out, batch_size=4)
    return model, reference, held_out, results


def test_sums_are_those_of_each_utterance_alone(scored):
    model, reference, held_out, results = scored
    graphdef, params = pure_params(model)
    forward = jax.jit(lambda params, batch: merge(graphdef, params)(batch))
    llm_graphdef, llm_params = pure_params(reference)

    @jax.jit
    def read(params, ids):
        llm = merge(llm_graphdef, params)
        return llm.logits(llm(llm.embed(ids), np.arange(32)[None])[0])

    text, untouched, codes, hits = [], [], [[], []], [[], []]
    for joined in held_out:
        grid = LAYOUT.arrange(joined)
        size = grid.tokens.shape[1]
        tokens = np.pad(grid.tokens, ((0, 0), (0, 32 - size)))[None]  # causal: the rest is unseen
        ones = np.ones((1, 32), np.int32)
        origins = np.pad(LAYOUT.origins(grid.clock), ((0, 0), (0, 32 - size)))[None]
        batch = {"tokens": tokens, "positions": np.arange(32)[None], "segment_ids": ones}
        batch["origins"] = origins
        outputs = jax.device_get(forward(params, batch))
        llm_logits = jax.device_get(read(llm_params, tokens[:, 0]))
        for column in range(len(joined["text-tiny"].values)):
            target = int(grid.targets[0, column])
            text.append(log_softmax(outputs.text_logits[0, column])[target])
            untouched.append(log_softmax(llm_logits[0, column])[target])
        for level, logits in enumerate(outputs.speech_logits):
            for column in range(size):
                starts = grid.clock[column + 1] != grid.clock[column]
                target = int(grid.targets[1 + level, column])
                if starts and target < CODES[level]:
                    codes[level].append(log_softmax(logits[0, column])[target])
                    hits[level].append(logits[0, column].argmax() == target)
    words = sum(len(joined["words"].words) for joined in held_out)
    assert results["text"]["n"] == len(text)
    assert results["text"]["cross_entropy"] == pytest.approx(-np.mean(text), rel=1e-5)
    assert results["text"]["perplexity"] == pytest.approx(np.exp(-np.mean(text)), rel=1e-4)
    found = results["text"]["reference_cross_entropy"]
    assert found == pytest.approx(-np.mean(untouched), rel=1e-5)
    for level, speech in enumerate(results["speech"]):
        assert speech["n"] == words == len(codes[level])
        assert speech["cross_entropy"] == pytest.approx(-np.mean(codes[level]), rel=1e-5)
        assert speech["accuracy"] == pytest.approx(np.mean(hits[level]))
        low, high = speech["interval"]
        assert low < speech["cross_entropy"] < high


def test_baselines_stand_beside_each_level(scored):
    for level, speech in enumerate(scored[3]["speech"]):
        assert speech["unigram"] == pytest.approx(np.log(CODES[level]), abs=0.4)
        assert speech["given_word"] == pytest.approx(speech["unigram"], abs=0.3)
    assert "1, 2 words" in scored[3]["layout"]


def test_continuous_head_gives_accuracy_and_no_cross_entropy():
    config = BackboneConfig(
        vocab_size=VOCAB, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=16
    )
    layout = Layout(
        "latent",
        Par(
            (
                Text("text-tiny", VOCAB, bos=1, eos=0),
                Delay(Stream("taste", (6, 6)), by=(1,), clock="word"),
            )
        ),
    )
    latent = SpeechLMConfig((6, 6), config, code_width=4, head="continuous", latent_width=3)
    model, reference = SpeechLM(latent, nnx.Rngs(0)), Backbone(config, nnx.Rngs(1))
    held_out = [record(i) for i in range(3)]
    results = language_model.evaluate(model, reference, layout, held_out, held_out)
    for speech in results["speech"]:
        assert speech["cross_entropy"] is None
        assert 0 <= speech["accuracy"] <= 1
