"""The resynthesis suite with judges whose verdicts are known."""

import numpy as np
import pytest

pytest.importorskip("pystoi")

from slm_jax.evaluation.stages import Stages
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.evaluation.tokenizers.resynthesis import (
    KINDS,
    Clip,
    Judges,
    equal_error_rate,
    listen_first,
    mean_of_sets,
    resynthesise,
)

RATE = 16_000


def voice(hertz, seed):
    time = np.arange(RATE) / RATE
    tone = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 15))
    noise = np.random.default_rng(seed).normal(size=len(time)) * 0.02
    return ((tone * (0.6 + 0.4 * np.sin(20 * time)) + noise) * 0.1).astype(np.float32)


CORPUS = Corpus(
    ids=list("abcd"),
    sets=["one", "one", "two", "two"],
    voices=["low", "high", "low", "high"],
    languages=["en", "en", "cs", "en"],
    texts=["red dog", "red dog", None, "red dog"],
    words=[()] * 4,
    audios=[voice(100, 0), voice(200, 1), voice(104, 2), voice(208, 3)],
)


def embed(audio):
    """Low voices and high ones at right angles, told by where the first harmonic lies."""
    spectrum = np.abs(np.fft.rfft(audio, RATE))
    return np.array([1.0, 0.0]) if np.argmax(spectrum[:300]) < 150 else np.array([0.0, 1.0])


JUDGES = Judges(
    transcribe=lambda audios: ["red dog" if np.abs(a).max() > 0.05 else "red" for a in audios],
    embed=embed,
    quality=lambda audio: 3.0 + float(np.abs(audio).max() > 0.05),
)


def measure(system):
    stages = Stages(["transcribe", "voice", *KINDS], len(CORPUS.ids))
    reference = listen_first(CORPUS, JUDGES, stages)
    return resynthesise("system", system, CORPUS, reference, JUDGES, stages)[0]


def test_a_copy_costs_its_bits_and_loses_nothing():
    found = measure(lambda audio: Clip(audio, 500.0))
    assert found["bits_per_second"] == 500 and found["failed"] == 0
    assert found["mean"]["mel"]["value"] == 0 and found["mean"]["wer"]["value"] == 0
    assert found["mean"]["wer"]["n"] == 3  # one utterance has no text
    assert found["mean"]["speaker_cosine"]["value"] == 1 and found["eer"] == 0
    assert found["mean"]["speaker_margin"]["value"] == 1
    assert found["sets"]["two"]["dnsmos"] == {"value": 4, "low": 4, "high": 4, "n": 2}


def test_a_whisper_is_misheard():
    found = measure(lambda audio: Clip(0.1 * audio))
    assert found["bits_per_second"] is None
    assert found["mean"]["wer"]["value"] == found["mean"]["dwer"]["value"] == 0.5
    assert found["mean"]["dnsmos"]["value"] == 3


def test_failures_are_counted_and_not_scored():
    def fails_on_high(audio):
        return Clip(np.zeros(0, np.float32) if embed(audio)[1] else audio, 1.0)

    found = measure(fails_on_high)
    assert found["failed"] == 2 and found["mean"]["mel"] == {
        "value": 0,
        "low": 0,
        "high": 0,
        "n": 1,  # the other that did not fail is Czech
    }
    assert found["mean"]["wer"] == {"value": 0, "low": 0, "high": 0, "n": 1}


def test_sets_count_alike_however_many_files_they_have():
    members = [np.array([True, True, True, False]), np.array([False, False, False, True])]
    figure = mean_of_sets(np.array([1.0, 1.0, np.nan, 3.0]), members)
    assert (figure.value, figure.low, figure.high, figure.n) == (2, 2, 2, 3)
    assert mean_of_sets(np.full(4, np.nan), members) is None


def test_equal_error_rate_by_hand():
    assert equal_error_rate(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 0
    assert equal_error_rate(np.array([0.1]), np.array([0.9])) == 1
    same, other = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.4, 0.75])
    assert equal_error_rate(same, other) == pytest.approx(0.25)
    assert equal_error_rate(np.zeros(0), other) is None
