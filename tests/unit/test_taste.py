"""TASTE end to end with random weights: shapes, batch independence, look-ahead, training steps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import WORDS, load_tiny_taste, tiny_taste, tiny_taste_config, tiny_whisper

from slm_jax.data.schema import Word
from slm_jax.errors import UserError
from slm_jax.nn.quantizers import FsqConfig
from slm_jax.tokenizers.taste import RATE, Taste, taste_config
from slm_jax.tokenizers.taste_decoder import TasteDecoderConfig
from slm_jax.tokenizers.taste_listen import Listener
from slm_jax.tokenizers.taste_network import TasteNetwork, aligned
from slm_jax.training.fit import FitConfig
from slm_jax.training.heard_cache import remembered
from slm_jax.training.spelling import Lines
from slm_jax.training.taste_examples import FRAMES, collate, draws, make_examples
from slm_jax.training.taste_losses import losses
from slm_jax.training.taste_stages import TasteTraining, train_tokenizer


def speech(seconds, seed=0):
    return (np.random.default_rng(seed).normal(size=int(seconds * RATE)) * 0.1).astype(np.float32)


def words(text, seconds):
    spelled = text.split(" ")
    edges = np.linspace(0, seconds, len(spelled) + 1)
    return [Word(w, a, b) for w, a, b in zip(spelled, edges, edges[1:], strict=False)]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def taste(tmp_path_factory, whisper):
    return load_tiny_taste(tmp_path_factory.mktemp("taste"), whisper)


def test_round_trip_has_the_declared_shapes(taste):
    audios, spoken = [speech(1.0), speech(2.3, 1)], [words("one two", 1.0), words("a b c", 2.3)]
    codes, speakers = taste.encode(audios, spoken)
    assert [c.shape for c in codes] == [(2, 2), (3, 2)]
    assert taste.spec.vocab == (8, 8) and taste.codebook_latents.shape == (2, 8, 8)
    np.testing.assert_allclose([np.linalg.norm(s) for s in speakers], 1, atol=0.01)
    decoded, times = taste.decode([[w.text for w in row] for row in spoken], codes, speakers)
    for audio, row in zip(decoded, times, strict=True):
        assert np.isfinite(audio).all() and np.abs(audio).max() <= 1
        assert all(a < b for a, b in row) and row[-1][1] <= len(audio) / RATE + 1e-6


def test_an_utterance_is_coded_the_same_alone_and_in_a_batch(taste):
    audios = [speech(1.0), speech(2.5, 1), speech(9.0, 2)]
    spoken = [words("one two", 1.0), words("a b c d", 2.5), words("long as it is", 9.0)]
    together, voices = taste.encode(audios, spoken)
    decoded, _ = taste.decode([[w.text for w in row] for row in spoken], together, voices)
    for i in range(3):
        alone, voice = taste.encode([audios[i]], [spoken[i]])
        np.testing.assert_array_equal(alone[0], together[i])
        np.testing.assert_allclose(voice[0], voices[i], atol=0.008)
        single, _ = taste.decode([[w.text for w in spoken[i]]], alone, voice)
        np.testing.assert_allclose(single[0], decoded[i], atol=1e-4)


def test_more_than_half_a_minute_is_cut_between_words(taste):
    audio, spoken = speech(40.0), words(" ".join(["word"] * 40), 40.0)
    codes, _ = taste.encode([audio], [spoken])
    assert codes[0].shape == (40, 2)


def test_one_endless_word_is_refused(taste):
    with pytest.raises(UserError, match="29 s"):
        taste.encode([speech(31.0)], [[Word("hm", 0.0, 31.0)]])


def test_codes_of_another_shape_or_range_are_refused(taste):
    speaker = [taste.default_speaker]
    with pytest.raises(ValueError, match="shape"):
        taste.decode([["a", "b"]], [np.zeros((1, 2), int)], speaker)
    with pytest.raises(ValueError, match="vocabulary"):
        taste.decode([["a"]], [np.full((1, 2), 8)], speaker)


def test_codes_and_speaker_change_the_speech(taste):
    text, speaker = [["hello", "there"]], [taste.default_speaker]
    base = taste.decode(text, [np.zeros((2, 2), int)], speaker)[0][0]
    for codes, voice in [(np.full((2, 2), 5), speaker[0]), (np.zeros((2, 2), int), -speaker[0])]:
        other = taste.decode(text, [codes], [voice])[0][0]
        assert len(other) != len(base) or np.abs(other - base).max() > 1e-5


def test_text_alone_is_spoken_without_codes(taste):
    text, speaker = [["hello", "there"]], [taste.default_speaker]
    [silent], [times] = taste.decode(text, None, speaker)
    [told], _ = taste.decode(text, [np.zeros((2, 2), int)], speaker)
    assert np.isfinite(silent).all() and len(times) == 2
    assert len(silent) != len(told) or np.abs(silent - told).max() > 1e-5


def test_speaker_vectors_cost_a_byte_a_number(taste):
    _, [speaker] = taste.encode([speech(1.0)], [words("one two", 1.0)])
    np.testing.assert_allclose(speaker * 127, np.round(speaker * 127), atol=1e-4)


def test_spec_says_that_the_encoder_hears_all_of_its_window(taste):
    assert taste.spec.lookahead == 29  # seconds


def test_lookahead_is_bounded_as_declared(taste):
    """A word far behind changes no state and so no sample of the beginning."""
    codes = np.zeros((30, 2), int)
    head, tail = ["ab"] * 15, ["cd"] * 15
    one, _ = taste.decode([head + tail], [codes], [taste.default_speaker])
    other, _ = taste.decode([head + ["xy"] * 15], [codes], [taste.default_speaker])
    same = np.abs(one[0][: len(other[0])] - other[0][: len(one[0])]) < 1e-6
    bytes_before = 15 * 3 - taste.text_lookahead
    samples = bytes_before * taste.config.vocoder.mel.hop  # a byte has one frame or more
    reach = int((taste.frame_lookahead + taste.vocoder_lookahead) * RATE)
    assert samples - reach > 0 and same[: samples - reach].all()


@pytest.mark.parametrize(
    "changes",
    [
        {"quantizer": "fsq", "fsq": FsqConfig(2, (3, 3))},
        {"pooling": "last"},
        {"prosody": False},
        {"value_layers": (0, 1)},
        {"decoder": TasteDecoderConfig(8, 8, 1, 1, 8, 8, 1, autoregressive=True)},
    ],
)
def test_variants_encode_and_decode(tmp_path, whisper, changes):
    taste = load_tiny_taste(tmp_path, whisper, **changes)
    codes, speakers = taste.encode([speech(1.0)], [words("one two", 1.0)])
    assert codes[0].max() < max(taste.spec.vocab)
    assert len(taste.decode([["one", "two"]], codes, speakers)[0][0]) > 0
    latent = sum(taste.codebook_latents[k][codes[0][:, k]] for k in range(2))
    expected = taste._network.dequantize(taste._params, jnp.asarray(codes[0]))
    np.testing.assert_allclose(latent, expected, atol=1e-5)


def test_config_survives_json():
    config = tiny_taste_config(pooling="last")
    assert taste_config(dataclasses.asdict(config)) == config


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, whisper):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Taste.load(whisper, tmp_path, tmp_path)
    folder = tiny_taste(tmp_path, whisper)
    other = tmp_path / "other.txt"
    other.write_text("one W AH1 N\n")
    with pytest.raises(UserError, match="another dictionary"):
        Taste.load(whisper, other, folder)
    (folder / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        Taste.load(whisper, folder, folder)
    (folder / "config.json").write_text('{"value_layer": 2}')
    with pytest.raises(UserError, match="of this version"):
        Taste.load(whisper, folder, folder)


@pytest.fixture(scope="module")
def prepared(whisper):
    config = tiny_taste_config()
    listener = Listener(whisper, config.value_layers, config.vocoder.mel)
    texts = ["one two", "a b c", "go on then", "yes", "no no", "one more time", "ab cd", "last one"]
    audios = [speech(1.0 + 0.2 * i, i) for i in range(8)]
    spoken = [words(t, 1.0 + 0.2 * i) for i, t in enumerate(texts)]
    return config, listener, make_examples(listener, audios, spoken, WORDS)


def test_batches_depend_on_seed_and_step_alone(prepared):
    _, listener, examples = prepared
    drawn, again = draws(examples, 2, seed=3), draws(examples, 2, seed=3)
    whole = [collate(drawn(step), listener) for step in range(4)]
    for name, value in collate(again(3), listener).items():
        np.testing.assert_array_equal(value, whole[3][name])


def test_what_was_heard_is_heard_once(tmp_path, prepared):
    _, listener, _ = prepared
    audios, spoken = [speech(1.0), speech(1.4, 1)], [words("one two", 1.0), words("a b c", 1.4)]
    calls = []

    def make(*inputs):
        calls.append(inputs)
        return make_examples(listener, *inputs, WORDS)

    first = remembered(tmp_path, "model", audios, spoken, make)
    again = remembered(tmp_path, "model", audios, spoken, make)
    assert len(calls) == 1 and [e.words for e in again] == [2, 3]
    for one, other in zip(first, again, strict=True):
        for before, after in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(before, after)
            assert getattr(before, "dtype", int) == getattr(after, "dtype", int)
    remembered(tmp_path, "another model", audios, spoken, make)
    remembered(tmp_path, "model", audios, [words("one too", 1.0), spoken[1]], make)
    assert len(calls) == 3


def test_alignment_gives_each_byte_frames_and_spends_them_all(prepared):
    _, listener, examples = prepared
    batch = collate(examples[:3], listener)
    prior = np.random.default_rng(0).normal(size=(*batch["ids"].shape, batch["mel"].shape[2]))
    durations = np.asarray(aligned(jnp.asarray(prior, jnp.float32), batch))
    np.testing.assert_array_equal(durations.sum(1), batch["frames"])
    assert np.all((durations > 0) == (batch["ids"] > 0))
    assert batch["mel"].shape[1] in FRAMES


def test_three_stages_train_resume_and_end_with_codebooks(tmp_path, prepared, capsys):
    config, listener, examples = prepared
    short = FitConfig(steps=2, log_every=1, save_every=1)
    training = TasteTraining(short, short, short, short, batch=8)
    vocoder = TasteNetwork(config, listener.config).init(0)["vocoder"]
    lines = Lines(WORDS, [["One", "two."]], 0)
    data = examples[:6], examples[6:], lines, listener, vocoder, config
    params = train_tokenizer(tmp_path, *data, training)
    assert np.abs(np.asarray(params["quantizer"]["codebooks"])).sum() > 0
    lines_of_log = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines_of_log]
    judged = [line for line in logged if "held_out/mel" in line]
    assert [line["stage"] for line in judged[:2]] == ["text", "text"]
    assert judged[0]["held_out/mel"] != judged[1]["held_out/mel"]  # the state moved
    longer = dataclasses.replace(training, quantized=FitConfig(3, 1, 1))
    capsys.readouterr()
    train_tokenizer(tmp_path, *data, longer)
    assert "quantized: resuming at step 2 of 3" in capsys.readouterr().out


def test_the_text_stage_leaves_the_aggregator_alone(prepared):

    config, listener, examples = prepared
    network = TasteNetwork(config, listener.config)
    params = network.init(0)
    batch = {k: jnp.asarray(v) for k, v in collate(examples[:2], listener).items()}

    def total(part, told):
        merged = params | {"aggregator": part}
        return losses(network, merged, batch, jax.random.key(0), told, 0.0, TasteTraining())[0]

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    silent = gradient(params["aggregator"], False)
    heard = gradient(params["aggregator"], True)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(silent))
    assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(heard))
