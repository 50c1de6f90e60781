import numpy as np
import pytest

from slm_jax.evaluation import baselines
from slm_jax.evaluation.baselines import CodeModel


def utterances(count, draw, seed=0, length=10):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        words = [f"w{int(rng.zipf(1.6)) % 50}" for _ in range(length)]
        out.append((words, np.array([draw(rng, word) for word in words], np.int32)))
    return out


def noise(rng, word):
    return [rng.integers(8)]


def spelled(rng, word):
    return [int(word[1:]) % 8 if rng.random() < 0.9 else rng.integers(8)]


def test_probabilities_sum_to_one_also_for_unseen_words():
    (words, codes), *_ = utterances(1, spelled, length=200)
    model = CodeModel(words, codes[:, 0], 8)
    for word in [words[0], words[0].upper(), "never"]:
        total = model.given_word([word] * 8, np.arange(8)).sum()
        assert total == pytest.approx(1)
    assert model.unigram(np.arange(8)).sum() == pytest.approx(1)


def test_noise_costs_the_uniform_entropy_and_words_do_not_help_nor_hurt():
    scores = baselines.evaluate(utterances(100, noise), utterances(50, noise, seed=1), [8])
    assert scores.unigram[0] == pytest.approx(np.log(8), abs=0.02)
    assert scores.given_word[0] == pytest.approx(np.log(8), abs=0.03)
    assert scores.count == 500


def test_words_that_tell_the_code_help():
    scores = baselines.evaluate(utterances(100, spelled), utterances(50, spelled, seed=1), [8])
    # 0.9 on one code and the rest over 8: the entropy that a perfect predictor reaches.
    likely, rest = 0.9 + 0.1 / 8, 0.1 / 8
    entropy = -likely * np.log(likely) - 7 * rest * np.log(rest)
    assert scores.given_word[0] < scores.unigram[0] - 0.5
    assert entropy - 0.05 < scores.given_word[0] < entropy + 0.2


def test_spelling_backs_off_to_the_plain_word():
    words = ["press"] * 30 + ["one"] * 30
    codes = np.array([1] * 30 + [2] * 30)
    model = CodeModel(words, codes, 4)
    ones = np.array([1])
    assert model.given_word(["Press,"], ones) > 0.8 > model.given_word(["number"], ones)
    assert model.given_word(["number"], ones) == pytest.approx(model.unigram(ones), rel=1e-6)


def test_tuned_smoothing_is_no_worse_than_any_fixed_one():
    train = utterances(30, spelled)
    words, codes = baselines._concatenate(train, 1)
    model = CodeModel(words, codes[:, 0], 8)

    def left_out(model):
        losses = []
        for i in range(0, len(words), 7):
            rest = CodeModel(words[:i] + words[i + 1 :], np.delete(codes[:, 0], i), 8)
            rest._alpha, rest._betas = model._alpha, model._betas
            losses.append(-np.log(rest.given_word([words[i]], codes[i : i + 1, 0])).item())
        return np.mean(losses)

    best = left_out(model)
    for betas in ([1e-2, 1e-2], [100.0, 100.0]):
        other = CodeModel(words, codes[:, 0], 8)
        other._betas = betas
        assert best < left_out(other)


def test_several_levels_and_shapes():
    two = [(["a", "b"], np.array([[0, 3], [1, 3]]))] * 5
    scores = baselines.evaluate(two, two, [2, 4])
    assert len(scores.unigram) == len(scores.given_word) == 2
    assert scores.given_word[0] < scores.unigram[0]
    with pytest.raises(ValueError, match="2 words"):
        baselines.evaluate([(["a", "b"], np.zeros((3, 2), int))], two, [2, 4])
    with pytest.raises(ValueError, match="no utterance"):
        baselines.evaluate([], two, [2, 4])
