"""The figures of tokenizers whose quality is known: one that changes nothing, and a bad one."""

import itertools
import json

import numpy as np
import pytest
import tokenizers

from slm_jax.audio.decode import encode_flac
from slm_jax.data.dataset import write_dataset
from slm_jax.data.schema import AudioItem, Utterance, Word, audio_spec, words_spec
from slm_jax.errors import UserError
from slm_jax.evaluation.degrade import DEGRADATIONS
from slm_jax.evaluation.scores import Judges
from slm_jax.evaluation.tokenizer import OPUS, ORIGINAL, TASTE, TEXT, VOCODER, evaluate_tokenizer
from slm_jax.evaluation.tokenizer_report import JSON, MARKDOWN, markdown
from slm_jax.evaluation.tokenizer_suite import _held_out
from slm_jax.streams import UTTERANCE, WORD, StreamSpec
from slm_jax.tokenizers.asr import Transcript
from slm_jax.tokenizers.text import SpecialIds, TextTokenizer

RATE = 16_000
PITCH = {"low": 200.0, "high": 400.0}
TEXTS = ("one two three", "four five six seven", "eight nine")


def tones(voice, words, seconds=0.25):
    """A word is a tone of `seconds`; the voice is its pitch."""
    time = np.arange(int(len(words) * seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * PITCH[voice] * time)).astype(np.float32)


def record(voice, text, seconds=0.25):
    words = text.split()
    times = tuple(Word(w, i * seconds, (i + 1) * seconds) for i, w in enumerate(words))
    id = f"{voice}-{text}"
    utterance = Utterance(id, times, "en", voice, len(words) * seconds, "test", text)
    audio = AudioItem(id, encode_flac(tones(voice, words, seconds)))
    return {"words": utterance, "audio": audio}


SETS = {voice: [record(voice, text) for text in TEXTS] for voice in PITCH}
COUNT = {len(text.split()): text for text in TEXTS}


class Faithful:
    """Codes are of no use to it: it remembers what it encoded, by the length of the words."""

    spec = StreamSpec("taste", "codes", WORD, vocab=(4, 4), fingerprint="faithful")
    speaker_spec = StreamSpec("speaker", "continuous", UTTERANCE, width=1)
    stretch = 1.0
    empty_text = False

    def encode(self, audios, words):
        return (
            [np.array([[i % 4, 1] for i in range(len(row))], np.int32) for row in words],
            [np.array([pitch(audio) / 1000], np.float32) for audio in audios],
        )

    def decode(self, words, codes, speakers):
        audios = []
        for row, speaker in zip(words, speakers, strict=True):
            voice = min(PITCH, key=lambda name: abs(PITCH[name] - 1000 * speaker[0]))
            audios.append(tones(voice, row, 0.25 * self.stretch))
        if codes is None and self.empty_text:
            audios[0] = np.zeros(0, np.float32)
        return audios, [[] for _ in words]

    def vocode(self, audio):
        return audio


class Slow(Faithful):
    stretch = 1.3
    empty_text = True


def pitch(audio):
    return float(np.argmax(np.abs(np.fft.rfft(audio, RATE)[:1000])))


def listen(audios):
    """Hears as many words as there is time for, and the text of that many."""
    counts = [min(COUNT, key=lambda n: abs(n - len(audio) / RATE / 0.25)) for audio in audios]
    return [COUNT[n] for n in counts]


def align(audio, words):
    edges = np.linspace(0, len(audio) / RATE, len(words) + 1)
    spans = list(itertools.pairwise(edges))
    return [None if word == "six" else span for word, span in zip(words, spans, strict=True)]


def realign(audios, texts):
    spoken = [text.split() for text in texts]
    return [
        Transcript(text, tuple(Word(w, 0.0, len(audio) / RATE) for w in words))
        for audio, text, words in zip(audios, texts, spoken, strict=True)
    ]


JUDGES = Judges(
    transcribe={"by length": listen},
    align=align,
    embed=lambda audio: np.array([1.0, 0.0] if pitch(audio) < 300 else [0.0, 1.0]),
    quality=lambda audio: float(len(audio) / RATE),
    realign=realign,
)


@pytest.fixture(scope="module")
def text():
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    model = tokenizers.models.BPE(vocab=letters, merges=[])
    return TextTokenizer(tokenizers.Tokenizer(model), "letters", SpecialIds(None, 0, None))


@pytest.fixture(scope="module")
def faithful(tmp_path_factory, text):
    out = tmp_path_factory.mktemp("suite")
    return out, evaluate_tokenizer(Faithful(), SETS, {"high"}, JUDGES, text, out=out, clips=1)


def test_a_perfect_tokenizer_differs_in_nothing(faithful):
    for name in (ORIGINAL, TASTE, TEXT, VOCODER):
        for group in ("all", "heard", "unheard", "low", "high"):
            found = faithful[1]["systems"][name][group]
            assert found["wer"]["by length"]["rate"]["value"] == 0
            assert found["wer"]["by length"]["difference"]["value"] == 0
            assert found["durations"]["share"]["value"] == 1 and found["failed"] == 0
            assert found["speaker"]["of_original"]["value"] == pytest.approx(1)
            assert found["dnsmos"]["difference"]["value"] == pytest.approx(0, abs=1e-3)
    whole = faithful[1]["systems"][TASTE]["all"]
    assert whole["utterances"] == 6 and whole["wer"]["by length"]["rate"]["n"] == 6
    assert whole["durations"]["words"] == 16 and whole["durations"]["unaligned"] == 2


def test_rates_and_sets_are_counted(faithful):
    result = faithful[1]
    low = result["sets"]["low"]
    assert (low["utterances"], low["words"], low["unheard"]) == (3, 9, False)
    assert low["seconds"] == pytest.approx(9 * 0.25, abs=1e-3)
    assert result["sets"]["high"]["unheard"]
    rate = result["rates"]["all"]
    assert rate["codes"]["value"] == pytest.approx(4 / 0.25)  # two codes of 2 bits a word
    letters = sum(len(text) for text in TEXTS)
    assert rate["text"]["value"] == pytest.approx(letters * np.log2(27) / (9 * 0.25))
    assert rate["speaker"]["value"] == pytest.approx(3 * 8 / (9 * 0.25))
    assert 5000 < result["systems"][OPUS]["all"]["bits_per_second"] < 9000
    assert set(result["speed"]) == {"utterances", "encode", "decode"}


def test_robustness_is_of_the_damaged_audio(faithful):
    found = faithful[1]["robustness"]
    assert list(found) == list(DEGRADATIONS)
    kept = found["telephone band"]["high"]
    assert kept[TASTE]["rate"]["value"] == kept[ORIGINAL]["rate"]["value"] == 0
    slow = found["slower, x0.8"]["all"]  # a quarter longer: the judge hears other words
    assert slow[ORIGINAL]["rate"]["value"] > 0 and slow[ORIGINAL]["difference"]["value"] > 0
    assert slow[TASTE]["rate"]["value"] == 0


def test_files_are_written(faithful):
    out, result = faithful
    assert json.loads((out / JSON).read_text()) == result
    assert (out / MARKDOWN).read_text() == markdown(result) + "\n"
    assert len(list((out / "clips").glob("*.wav"))) == 2 * 5
    lines = (out / MARKDOWN).read_text().splitlines()
    tables = [line.count("|") for line in lines if line.startswith("| ")]
    assert tables and "| all | TASTE | 0.0 (0.0 to 0.0) |" in "\n".join(lines)


def test_a_slow_tokenizer_fails_where_it_should(tmp_path, text):
    result = evaluate_tokenizer(Slow(), SETS, (), JUDGES, text, out=tmp_path)
    found = result["systems"][TASTE]["all"]
    assert found["durations"]["share"]["value"] == 0  # each word 75 ms longer
    assert found["dnsmos"]["difference"]["value"] == pytest.approx(0.3 * 0.75, abs=1e-3)
    assert found["wer"]["by length"]["rate"]["value"] > 0
    assert result["systems"][VOCODER]["all"]["durations"]["share"]["value"] == 1
    failed = result["systems"][TEXT]["all"]  # no audio for the first utterance of a batch
    assert failed["failed"] == 1 and failed["wer"]["by length"]["rate"]["n"] == 5
    assert failed["dnsmos"]["mean"]["n"] == 5 and failed["durations"]["unaligned"] == 3 + 2
    assert "unheard" not in result["sets"]


def test_limits_and_wrong_voices(tmp_path, text):
    result = evaluate_tokenizer(Faithful(), SETS, (), JUDGES, text, out=tmp_path, limit=2)
    assert result["sets"]["all"]["utterances"] == 4
    with pytest.raises(ValueError, match="nobody"):
        evaluate_tokenizer(Faithful(), SETS, {"nobody"}, JUDGES, text, out=tmp_path)


def test_datasets_become_voices(tmp_path):
    specs = [words_spec(), audio_spec()]
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    write_dataset(one, "one", specs, {"train": SETS["low"][:1], "test": SETS["low"][1:]})
    write_dataset(many, "many", specs, {"validation": SETS["low"], "test": SETS["high"]})
    sets, new = _held_out([one, many], ["many/high", one])
    assert {name: len(rows) for name, rows in sets.items()} == {
        "one": 2,
        "many/low": 3,
        "many/high": 3,
    }
    assert new == {"one", "many/high"}
    with pytest.raises(UserError, match="somebody"):
        _held_out([one], ["somebody"])
