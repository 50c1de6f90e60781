"""The independent aligner and recogniser, on a prompt of the corpus."""

import itertools

import numpy as np
import pytest

pytest.importorskip("pocketsphinx", reason="the extra `eval` is not installed")

from data_pipelines import fetch
from slm_jax.audio.decode import load
from slm_jax.evaluation.pocket import PocketSphinx, _parts
from slm_jax.evaluation.wer import normalize


@pytest.fixture(scope="module")
def pocket():
    return PocketSphinx()


@pytest.fixture(scope="module")
def prompt():
    return load(fetch.prompts() / "sounds" / "conf-now-recording.g722")


def test_words_as_the_dictionary_has_them():
    assert _parts("Don’t,") == ["don't"]
    assert _parts("twenty-5%") == ["twenty", "five", "percent"]
    assert _parts("—") == []


def test_nothing_to_align_is_no_error(pocket):
    silence = np.zeros(16_000, np.float32)
    assert pocket.align(silence[:0], ["one"]) == [None]
    assert pocket.align(silence, []) == []
    assert pocket.align(silence, ["—"]) == [None]
    assert pocket.transcribe([silence[:0]]) == [""]


@pytest.mark.slow
def test_a_prompt_is_aligned_and_transcribed(pocket, prompt):
    words = ["The", "conference", "is", "now", "being", "recorded."]
    times = pocket.align(prompt, words)
    assert all(start < end for start, end in times)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(times))
    assert times[-1][1] <= len(prompt) / 16_000 + 0.01  # its last frame is begun
    longest = max(range(6), key=lambda i: times[i][1] - times[i][0])
    assert words[longest] in ("conference", "recorded.")
    later = pocket.align(np.pad(prompt, (8000, 0)), words)
    shifts = [b[1] - a[1] for a, b in zip(times, later, strict=True)]
    np.testing.assert_allclose(shifts, 0.5, atol=0.05)
    heard = normalize(pocket.transcribe([prompt])[0])
    assert len({"conference", "now", "being", "recorded"} & set(heard)) >= 2
    assert pocket.transcribe([prompt]) == pocket.transcribe([np.copy(prompt)])


@pytest.mark.slow
def test_a_word_without_pronunciation_costs_its_neighbours_nothing(pocket, prompt):
    words = ["The", "conferenze", "is", "now", "being", "recorded"]
    times = pocket.align(prompt, words)
    assert times[1] is None and None not in times[2:]
    known = pocket.align(prompt, ["the", "conference", *words[2:]])
    np.testing.assert_allclose(times[3:], known[3:], atol=0.03)


@pytest.mark.slow
def test_too_many_words_for_the_audio_is_a_failure(pocket, prompt):
    words = ["impossible"] * 60
    assert pocket.align(prompt[:8000], words) == [None] * 60


@pytest.mark.slow
def test_phones_lie_in_their_words(pocket, prompt):
    words = ["The", "conference", "is", "now", "being", "recorded."]
    times, phones = pocket.align(prompt, words), pocket.phones(prompt, words)
    assert [name for name, _, _ in phones][:2] == ["DH", "AH"]
    assert all(a[2] <= b[1] + 1e-9 for a, b in itertools.pairwise(phones))
    now = [name for name, start, end in phones if times[3][0] - 0.03 <= start < times[3][1] - 0.03]
    assert now == ["N", "AW"]
    shorter = pocket.phones(prompt, ["The", "conferenze", "is", "now", "being", "recorded"])
    assert 0 < len(shorter) < len(phones)  # a word that the dictionary lacks has none
    assert pocket.phones(prompt[:0], words) == [] == pocket.phones(prompt, [])
    assert pocket.align(prompt, words) == times  # the second pass leaves nothing behind
