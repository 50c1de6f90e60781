"""Probes learn what codes say, and nothing from codes that say nothing."""

import jax
import numpy as np
import pytest
from flax import nnx

from slm_jax.evaluation.tokenizers.coders import Coder, on_frames
from slm_jax.evaluation.tokenizers.probe_models import HEADS, CodeEntry, Probe
from slm_jax.evaluation.tokenizers.probes import Budget, baseline, probe
from slm_jax.evaluation.tokenizers.tasks import Example, Task
from slm_jax.nn.layers import Linear

BUDGET = Budget(width=16, steps=60, spelling_steps=250, rate=1e-2)
COUNT = 64  # examples of each split


def coder(vocab, clock=50.0):
    return Coder(lambda audio: None, vocab, clock, "test")


def two_levels(seed):
    """Codes whose second level alone says "a" (0 to 3) or "b" (4 to 7)."""
    rng = np.random.default_rng(seed)
    answers = rng.choice(["a", "b"], COUNT)
    coded = []
    for answer in answers:
        codes = rng.integers(0, [8, 4], (rng.integers(5, 13), 2))
        codes[:, 1] += 4 * (answer == "b")
        coded.append(on_frames(codes, 50.0))
    return coded, answers


def a_task(train, held_out, classes):
    both = [
        [Example(i, 0.0, np.inf, str(a)) for i, a in enumerate(answers)]
        for answers in (train, held_out)
    ]
    return Task(*both, classes)


@pytest.mark.parametrize("head", HEADS)
def test_a_class_that_codes_decide_is_learned(head):
    (train, answers), (held_out, asked) = two_levels(0), two_levels(1)
    task = a_task(answers, asked, ("a", "b"))
    found = probe(task, head, coder((8, 8)), train, held_out, BUDGET)
    assert found["accuracy"].value > 0.95 and found["accuracy"].n == COUNT


def test_answers_in_another_order_leave_chance():
    (train, answers), (held_out, asked) = two_levels(0), two_levels(1)
    rng = np.random.default_rng(2)
    task = a_task(rng.permutation(answers), rng.permutation(asked), ("a", "b"))
    found = probe(task, "linear", coder((8, 8)), train, held_out, BUDGET)["accuracy"]
    assert 0.25 < found.value < 0.75
    usual = max(("a", "b"), key=[example.answer for example in task.train].count)
    assert baseline(task)["accuracy"].value == np.mean(asked == usual)


def test_vectors_are_standardised_first():
    """Features far from zero, one of them constant: without their mean taken off, 60 steps are not
    enough."""
    (train, answers), (held_out, asked) = two_levels(0), two_levels(1)
    both = [
        [
            one._replace(values=np.float32(1e4 + 1e-1 * one.values[:, [1, 1]] * [1, 0]))
            for one in part
        ]
        for part in (train, held_out)
    ]
    task = a_task(answers, asked, ("a", "b"))
    assert probe(task, "linear", coder(()), *both, BUDGET)["accuracy"].value > 0.95


def test_utterances_without_codes_are_left_out():
    (train, answers), (held_out, asked) = two_levels(0), two_levels(1)
    held_out[3] = None
    task = a_task(answers, asked, ("a", "b"))
    found = probe(task, "linear", coder((8, 8)), [*train[:-1], None], held_out, BUDGET)
    assert found["accuracy"].n == COUNT - 1
    nothing = [None] * COUNT
    assert probe(task, "linear", coder((8, 8)), nothing, held_out, BUDGET) == {"accuracy": None}
    spelled = a_task(["a"] * COUNT, ["a"] * COUNT, ())
    found = probe(spelled, "linear", coder((8, 8)), train, nothing, BUDGET)
    assert found == {"wer": None, "cer": None}


def spellings(seed, words, code):
    """Texts of three of `words`, and their codes [T, 1]."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(words, 3)) for _ in range(COUNT)]
    return [np.array([[c] for c in code(text)]) for text in texts], texts


def test_letters_are_spelled():
    """A code a letter, thrice; equal letters in a row need the blank between them."""

    def code(text):
        return [c for letter in text for c in (*[ord(letter) % 32] * 3, 31)]

    (train, texts), (held_out, asked) = (spellings(s, ["bee", "cab", "add"], code) for s in (0, 1))
    both = [[on_frames(x, 50.0) for x in part] for part in (train, held_out)]
    found = probe(a_task(texts, asked, ()), "linear", coder((32,)), *both, BUDGET)
    assert found["wer"].value < 0.1 and found["cer"].value < 0.05
    nothing = baseline(a_task(texts, asked, ()))
    assert nothing["wer"].value == nothing["cer"].value == 1


def test_few_codes_spell_many_letters():
    """A code a word, of four words a second: an item writes several letters."""
    words = ["bee", "cab", "add", "of"]
    (train, texts), (held_out, asked) = (
        spellings(s, words, lambda text: map(words.index, text.split())) for s in (0, 1)
    )
    both = [[on_frames(x, 4.0) for x in part] for part in (train, held_out)]
    found = probe(a_task(texts, asked, ()), "linear", coder((4,), "word"), *both, BUDGET)
    assert found["cer"].value < 0.05


def test_a_stretch_is_cut_out_by_its_times():
    """One utterance whose halves say different things, and a word shorter than any item."""
    codes = on_frames(np.array([[0]] * 10 + [[1]] * 10), 10.0)
    examples = [Example(0, 0.0, 1.0, "a"), Example(0, 1.0, 2.0, "b"), Example(0, 1.96, 1.99, "b")]
    task = Task(examples, examples, ("a", "b"))
    found = probe(task, "linear", coder((2,), 10.0), [codes], [codes], BUDGET)
    assert found["accuracy"].value == 1


@pytest.mark.parametrize(("head", "positions"), [("linear", 0), ("bilstm", 0), ("bilstm", 3)])
def test_what_lies_beyond_the_end_does_not_matter(head, positions):
    rngs = nnx.Rngs(0)
    model = Probe(CodeEntry((4, 6), 8, rngs=rngs), 8, head, 5, positions, rngs=rngs)
    codes = jax.random.randint(jax.random.key(1), (2, 7, 2), 0, 4)
    alone = jax.jit(lambda *rows: model(*rows))(codes[:1, :4], np.array([4]))
    batch = jax.jit(lambda *rows: model(*rows))(codes, np.array([4, 7]))
    used = batch[:1] if positions == 0 else batch[:1, : 4 * positions]
    np.testing.assert_allclose(used, alone, atol=1e-6)
    if positions:
        assert batch.shape == (2, 7 * positions, 5)


def test_a_bilstm_hears_what_comes_later_and_a_linear_head_does_not():
    x = jax.random.normal(jax.random.key(0), (1, 5, 3))
    other = x.at[0, 3].add(1.0)
    for head in HEADS:
        rngs = nnx.Rngs(0)
        model = Probe(Linear(3, 8, rngs=rngs), 8, head, 5, 1, rngs=rngs)
        run = jax.jit(lambda *rows, model=model: model(*rows))
        before, after = (run(v, np.array([4]))[0, 0] for v in (x, other))
        assert np.allclose(before, after) == (head == "linear")
