"""Batched recognition and alignment on a tiny random Whisper, against plain loops."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slm_jax.errors import UserError
from slm_jax.interop import whisper as checkpoints
from slm_jax.nn.tree import flatten, merge, pure_params
from slm_jax.tokenizers import asr as asr_module
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.segmenters import WhitespaceSegmenter
from slm_jax.tokenizers.whisper import Whisper, WhisperConfig
from slm_jax.tokenizers.whisper_text import WhisperText

RATE = 16_000
CONFIG = WhisperConfig(
    vocab_size=270,
    width=16,
    mlp_width=24,
    encoder_layers=1,
    encoder_heads=2,
    decoder_layers=2,
    decoder_heads=2,
    text_context=64,
)
SUPPRESSED, SUPPRESSED_FIRST = [33, 34], [32, 256]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|transcribe|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights under Hugging Face's names, and a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("whisper")
    _, params = pure_params(Whisper(CONFIG, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    weights = {k: np.asarray(v) for k, v in flatten(params).items()}
    tensors = {}
    for ours, theirs in checkpoints._HUGGING_FACE.table().items():
        array = weights[ours] + rng.normal(size=weights[ours].shape).astype(np.float32) * 0.3
        layers = enumerate(array) if "{i}" in theirs else [(0, array)]
        for i, layer in layers:
            tensors[theirs.replace("{i}", str(i))] = np.ascontiguousarray(
                layer.T if ours.endswith("/kernel") else layer
            )
    save_file(tensors, path / "model.safetensors")
    config = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "suppress_tokens": SUPPRESSED,
        "begin_suppress_tokens": SUPPRESSED_FIRST,
        "alignment_heads": [[0, 1], [1, 0]],
    }
    (path / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, "<|notimestamps|>"])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def asr(folder):
    return Asr(folder, batch_size=2)


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(seconds * RATE)).astype(np.float32) * 0.1


AUDIOS = [noise(3.0, 0), noise(1.0, 1), noise(2.0, 2)]


@pytest.fixture(scope="module")
def logits(asr):
    """(audio, ids) -> [S, V]: the whole text at once, the audio padded to 30 s by itself."""

    @jax.jit
    def run(params, encoded, ids):
        decoder = merge(asr._graphdef, params).decoder
        return decoder.logits(decoder(ids, decoder.cross(encoded)).hidden)[0]

    def padded(audio, ids):
        samples = np.zeros((1, 30 * RATE), np.float32)
        samples[0, : len(audio)] = audio
        row = np.zeros((1, CONFIG.text_context), np.int32)
        row[0, : len(ids)] = ids
        encoded = asr_module._encode(asr._graphdef, asr._params, samples)
        return np.array(run(asr._params, encoded, row))

    return padded


def plain_greedy(asr: Asr, logits, audio: np.ndarray) -> list[int]:
    """One id at a time, everything computed anew at each step."""
    prompt, ids = list(asr._text.prompt("en")), []
    while len(ids) < CONFIG.text_context - len(prompt):
        scores = logits(audio, prompt + ids)[len(prompt) + len(ids) - 1]
        scores[asr._text.end + 1 :] = -np.inf
        scores[SUPPRESSED + ([] if ids else SUPPRESSED_FIRST)] = -np.inf
        if scores.argmax() == asr._text.end:
            break
        ids.append(int(scores.argmax()))
    return ids


def test_batched_greedy_is_that_of_a_plain_loop(asr, logits):
    heard = asr.transcribe(AUDIOS, word_times=False)
    segmenter = WhitespaceSegmenter()
    for audio, transcript in zip(AUDIOS, heard, strict=True):
        ids = plain_greedy(asr, logits, audio)
        assert ids and not {*SUPPRESSED, *range(256, 270)} & {*ids}
        assert transcript.text == segmenter.join(segmenter.split(asr._text.decode(ids)))
        assert transcript.words == ()


def test_align_places_every_word(asr):
    texts = ["one two three", "four", "five  six"]
    placed = asr.align(AUDIOS, texts)
    assert [t.text for t in placed] == ["one two three", "four", "five six"]
    for audio, transcript in zip(AUDIOS, placed, strict=True):
        assert " ".join(w.text for w in transcript.words) == transcript.text
        times = [t for w in transcript.words for t in (w.start, w.end)]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(audio) / RATE + 1e-6
        assert all(w.start < w.end and 0 < w.confidence <= 1 for w in transcript.words)
    # Neither the batch nor what shares it changes a result.
    alone = asr.align(AUDIOS[:1], texts[:1])[0]
    for word, other in zip(placed[0].words, alone.words, strict=True):
        assert word.start == pytest.approx(other.start, abs=0.021)
        assert word.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_confidence_is_the_mean_probability_of_the_ids(asr, logits):
    word = asr.align(AUDIOS[1:2], ["four"], context="full")[0].words[0]
    prompt, ids = asr._text.prompt("en"), asr._text.encode(" four")
    p = jax.nn.softmax(logits(AUDIOS[1], [*prompt, *ids])[len(prompt) - 1 :, : asr._text.end])
    assert word.confidence == pytest.approx(np.mean([p[i, ids[i]] for i in range(5)]), rel=1e-3)


def test_nothing_said_nothing_placed(asr):
    empty = np.zeros(0, np.float32)
    assert asr.align([AUDIOS[1]], ["  "])[0].words == ()
    assert asr.transcribe([empty])[0].text == ""
    assert asr.align([empty], [""])[0].words == ()
    with pytest.raises(UserError, match="recording 1 is empty"):
        asr.align([AUDIOS[1], empty], ["one", "two"])


def test_bad_input_is_named(asr):
    with pytest.raises(UserError, match="transcript 1 has"):
        asr.align(AUDIOS[:2], ["one", "far too long " * 9])
    with pytest.raises(UserError, match="English only"):
        asr.transcribe(AUDIOS, language="fr")
    with pytest.raises(UserError, match=r"recording 0 has shape \(10, 2\)"):
        asr.transcribe([np.zeros((10, 2), np.float32)])


def test_multilingual_prompt_names_language_and_task(folder):
    text = WhisperText(folder, vocab_size=51865)
    assert text.prompt("zh-TW") == (257, 259, 260, 261)
    assert text.encode("<|en|>") != [258]
    with pytest.raises(UserError, match=r"no token <\|xx\|>"):
        text.prompt("xx")


def test_tokenizer_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        WhisperText(tmp_path, 51865)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not readable"):
        WhisperText(tmp_path, 51865)


def test_long_recordings_are_cut_where_it_is_quiet():
    audio = noise(70, 3)
    for quiet in (25.0, 48.0):
        audio[int(quiet * RATE) : int((quiet + 0.4) * RATE)] *= 0.001
    pieces = asr_module._pieces(4, audio)
    assert [p.item for p in pieces] == [4, 4, 4]
    assert [p.start / RATE for p in pieces] == pytest.approx([0, 25.2, 48.2], abs=0.11)
    np.testing.assert_array_equal(np.concatenate([p.audio for p in pieces]), audio)
    assert max(len(p.audio) for p in pieces) <= 30 * RATE


def test_a_long_transcript_is_divided_by_what_was_heard():
    words = ["Press", "one", "for", "sales.", "Press", "two", "for", "support."]
    heard = [["press", "one", "four", "sails."], ["Press", "to", "for", "support."]]
    assert asr_module._divide(words, heard) == [words[:4], words[4:]]
    assert asr_module._divide([], heard) == [[], []]
    assert asr_module._divide(words, [[], []]) == [words, []]


def test_long_recording_is_aligned_throughout(asr):
    audio = noise(40, 5)
    words = asr.align([audio], ["one two three four five six"])[0].words
    assert [w.text for w in words] == ["one", "two", "three", "four", "five", "six"]
    starts = [w.start for w in words]
    assert starts == sorted(starts) and words[-1].end <= 40


def test_fingerprint_is_of_the_weights(asr, folder):
    assert asr.fingerprint == Asr(folder).fingerprint
    other = Asr(folder)
    other._params = jax.tree.map(lambda x: x + 1, other._params)
    assert other.fingerprint != asr.fingerprint
