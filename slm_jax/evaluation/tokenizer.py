"""How good a speech tokenizer is: what is understood, when, by whose voice, and at what cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from slm_jax.audio import decode
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS, Record, Word
from slm_jax.evaluation import tokenizer_report, wer
from slm_jax.evaluation.bits import bit_rate
from slm_jax.evaluation.degrade import DEGRADATIONS, OPUS_RATE, opus
from slm_jax.evaluation.scores import (
    Judges,
    Scores,
    count_edits,
    judge_clips,
    summarise,
    word_errors,
)
from slm_jax.evaluation.stages import Stages
from slm_jax.streams import StreamSpec
from slm_jax.tokenizers.taste import round_speaker
from slm_jax.tokenizers.text import TextTokenizer, encode_words

ORIGINAL, TASTE, TEXT, VOCODER = "original", "TASTE", "text only", "vocoder alone"
OPUS = f"Opus {OPUS_RATE // 1000} kbit/s"
_TIMED = 16  # utterances that are encoded and decoded once more for the stopwatch

PROTOCOL = (
    "tokenizer-1: held-out utterances. TASTE speaks from their words, codes and a speaker vector "
    "of 8 bits a dimension; text only, from words and speaker vector. Word error: "
    + wer.PROTOCOL
    + ", over all utterances together. Durations: share of words as long as in the original, 50 ms "
    "more or less, both aligned by pocketsphinx in whole centiseconds; words that it could not "
    "align in both are left out and counted. Speaker: cosine of d-vectors to the other original "
    "utterances of the voice, minus the mean to those of other voices; divided by the same of the "
    "originals. DNSMOS overall; clips under 9.01 s are repeated by its own code. Robustness: "
    "damaged audio is tokenized with the true words, their times aligned anew by Whisper. A clip "
    "without samples or with one that is not finite counts as failed and is not scored. Intervals: "
    "95 %, bootstrap over utterances, differences paired."
)


class Tokenizer(Protocol):
    """What is measured; `slm_jax.tokenizers.taste.Taste` is one."""

    spec: StreamSpec
    speaker_spec: StreamSpec

    def encode(
        self, audios: Sequence[np.ndarray], words: Sequence[Sequence[Any]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Codes and speaker vectors."""

    def decode(
        self,
        words: Sequence[Sequence[str]],
        codes: Sequence[np.ndarray] | None,
        speakers: Sequence[np.ndarray],
    ) -> tuple[list[np.ndarray], list[list[tuple[float, float]]]]:
        """Audio and word times; codes None: from the text alone."""

    def vocode(self, audio: np.ndarray) -> np.ndarray:
        """Audio through the last part of the decoder."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Corpus:
    """All utterances, one list entry each."""

    ids: list[str]
    voices: list[str]
    texts: list[str]
    words: list[Sequence[Word]]
    audios: list[np.ndarray]
    text_ids: list[int]

    @property
    def seconds(self) -> list[float]:
        return [len(audio) / AUDIO_RATE for audio in self.audios]

    def groups(self, unheard: Collection[str]) -> dict[str, list[int]]:
        """Utterances of all voices, of those heard in training and not, and of each voice."""
        rows = list(range(len(self.ids)))
        new = {i for i in rows if self.voices[i] in unheard}
        found = {"all": rows, "heard": [i for i in rows if i not in new], "unheard": sorted(new)}
        for voice in dict.fromkeys(self.voices):
            found[voice] = [i for i in rows if self.voices[i] == voice]
        return {name: members for name, members in found.items() if members}


def evaluate_tokenizer(
    taste: Tokenizer,
    sets: Mapping[str, Sequence[Record]],
    unheard: Collection[str],
    judges: Judges,
    text: TextTokenizer,
    *,
    out: Path,
    limit: int | None = None,
    clips: int = 3,
) -> dict[str, Any]:
    """Measures a tokenizer beside the original, its parts and Opus.

    What is finished is in `out`/tokenizer.json and tokenizer.md as soon as it is known; clips of
    each voice lie in `out`/clips.

    Args:
      taste: the tokenizer.
      sets: voice -> held-out utterances with "words" and "audio"; those without words are left out.
      unheard: the voices that the tokenizer was not trained on.
      judges: what listens.
      text: of the language model, for the cost of the words.
      out: folder, made if missing.
      limit: utterances of each voice at most.
      clips: utterances of each voice whose audio is kept.

    Returns:
      {"protocol", "sets", "rates", "speed", "systems", "robustness"}: see
      `slm_jax.evaluation.scores.summarise` for what stands under systems[name][group], where group
      is "all", "heard", "unheard" or a voice.

    Raises:
      ValueError: no utterance has words, or `unheard` names a voice that is not there.
    """
    if extra := set(unheard) - set(sets):
        raise ValueError(f"unheard voices without utterances: {', '.join(sorted(extra))}")
    corpus = _collect(sets, text, limit)
    groups = corpus.groups(unheard)
    result = {
        "protocol": PROTOCOL,
        "tokenizer": taste.spec.fingerprint,
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "sets": {name: _size(corpus, rows) for name, rows in groups.items()},
        "systems": {},
        "robustness": {},
    }
    for name in unheard:
        result["sets"][name]["unheard"] = True
    kinds = ["speak", *judges.transcribe, "align", "speaker", "quality"]
    first = next(iter(judges.transcribe))
    plan = ["encode", *kinds * 5, *["damage", "encode", "speak", first, first] * len(DEGRADATIONS)]
    stages = Stages(plan, len(corpus.ids))

    codes, speakers = _encode(taste, corpus.audios, corpus.words, stages, TASTE)
    result["rates"] = {
        name: bit_rate(
            [codes[i] for i in rows],
            taste.spec.vocab,
            [corpus.text_ids[i] for i in rows],
            text.vocab_size,
            taste.speaker_spec.width,
            [corpus.seconds[i] for i in rows],
        )
        for name, rows in groups.items()
    }
    original: Scores | None = None
    opus_bits = np.zeros(len(corpus.ids))

    def through_opus(i: int) -> np.ndarray:
        audio, opus_bits[i] = opus(corpus.audios[i])
        return audio

    spoken = [[word.text for word in words] for words in corpus.words]
    ways: dict[str, Callable[[list[int]], list[np.ndarray]]] = {
        ORIGINAL: lambda rows: [corpus.audios[i] for i in rows],
        TASTE: lambda rows: _decode(taste, spoken, codes, speakers, rows),
        TEXT: lambda rows: _decode(taste, spoken, None, speakers, rows),
        VOCODER: lambda rows: [taste.vocode(corpus.audios[i]) for i in rows],
        OPUS: lambda rows: [through_opus(i) for i in rows],
    }
    for name, way in ways.items():
        audios = stages.map("speak", f"{name}: making the audio", way)
        _keep(out, corpus, name, audios, clips)
        scores = judge_clips(name, audios, corpus.texts, spoken, judges, stages)
        original = original or scores
        result["systems"][name] = {
            group: summarise(scores, original, corpus.voices, rows)
            for group, rows in groups.items()
        }
        tokenizer_report.write(out, result)
    result["systems"][OPUS]["all"]["bits_per_second"] = opus_bits.sum() / sum(corpus.seconds)
    result["speed"] = _speed(taste, corpus, spoken, codes, speakers)
    for name, damage in DEGRADATIONS.items():
        result["robustness"][name] = _robustness(
            name, damage, taste, corpus, judges, stages, original, groups
        )
        tokenizer_report.write(out, result)
    return result


def _collect(
    sets: Mapping[str, Sequence[Record]], text: TextTokenizer, limit: int | None
) -> _Corpus:
    rows = [
        (voice, record)
        for voice, records in sets.items()
        for record in [r for r in records if r[WORDS].words and wer.normalize(r[WORDS].text)][
            :limit
        ]
    ]
    if not rows:
        raise ValueError("no utterance has words")
    utterances = [record[WORDS] for _, record in rows]
    return _Corpus(
        ids=[utterance.id for utterance in utterances],
        voices=[voice for voice, _ in rows],
        texts=[utterance.text for utterance in utterances],
        words=[utterance.words for utterance in utterances],
        audios=[decode.load(record[AUDIO].flac) for _, record in rows],
        text_ids=[
            len(encode_words(text, [w.text for w in u.words], u.language)[0]) for u in utterances
        ],
    )


def _size(corpus: _Corpus, rows: Sequence[int]) -> dict[str, Any]:
    return {
        "utterances": len(rows),
        "words": sum(len(corpus.words[i]) for i in rows),
        "seconds": sum(corpus.seconds[i] for i in rows),
        "unheard": False,
    }


def _encode(
    taste: Tokenizer,
    audios: Sequence[np.ndarray],
    words: Sequence[Sequence[Word]],
    stages: Stages,
    title: str,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    def encode(rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        codes, speakers = taste.encode([audios[i] for i in rows], [words[i] for i in rows])
        return list(zip(codes, map(round_speaker, speakers), strict=True))

    codes, speakers = zip(*stages.map("encode", f"{title}: encoding", encode), strict=True)
    return list(codes), list(speakers)


def _decode(
    taste: Tokenizer,
    words: Sequence[Sequence[str]],
    codes: Sequence[np.ndarray] | None,
    speakers: Sequence[np.ndarray],
    rows: Sequence[int],
) -> list[np.ndarray]:
    told = None if codes is None else [codes[i] for i in rows]
    return taste.decode([words[i] for i in rows], told, [speakers[i] for i in rows])[0]


def _speed(
    taste: Tokenizer,
    corpus: _Corpus,
    words: Sequence[Sequence[str]],
    codes: Sequence[np.ndarray],
    speakers: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Seconds a second of audio, compiled, words and their times given."""
    rows = np.unique(np.linspace(0, len(corpus.ids) - 1, _TIMED).astype(int)).tolist()
    seconds = sum(corpus.seconds[i] for i in rows)
    audios, placed = [corpus.audios[i] for i in rows], [corpus.words[i] for i in rows]

    def timed(function: Callable[[], Any]) -> float:
        function()  # compiles
        began = time.perf_counter()
        function()
        return (time.perf_counter() - began) / seconds

    return {
        "utterances": len(rows),
        "encode": timed(lambda: taste.encode(audios, placed)),
        "decode": timed(lambda: _decode(taste, words, codes, speakers, rows)),
    }


def _robustness(
    name: str,
    damage: Callable[[np.ndarray], np.ndarray],
    taste: Tokenizer,
    corpus: _Corpus,
    judges: Judges,
    stages: Stages,
    original: Scores,
    groups: Mapping[str, list[int]],
) -> dict[str, Any]:
    """group -> the word errors of damaged audio, and of TASTE that was given it."""

    def break_(rows: list[int]) -> list[tuple[np.ndarray, tuple[Word, ...]]]:
        damaged = [damage(corpus.audios[i]) for i in rows]
        aligned = judges.realign(damaged, [corpus.texts[i] for i in rows])
        return [(audio, heard.words) for audio, heard in zip(damaged, aligned, strict=True)]

    broken = stages.map("damage", f"{name}: damaging and aligning", break_)
    audios, words = (list(column) for column in zip(*broken, strict=True))
    codes, speakers = _encode(taste, audios, words, stages, name)
    spoken = [[word.text for word in row] for row in words]
    rebuilt = stages.map(
        "speak", f"{name}: TASTE", lambda rows: _decode(taste, spoken, codes, speakers, rows)
    )
    judge = next(iter(judges.transcribe))
    errors = {
        ORIGINAL: count_edits(f"{name}: {ORIGINAL}", audios, corpus.texts, judge, judges, stages),
        TASTE: count_edits(f"{name}: {TASTE}", rebuilt, corpus.texts, judge, judges, stages),
    }
    return {
        group: {
            system: word_errors(found, original.edits[judge], original.words, rows)
            for system, found in errors.items()
        }
        for group, rows in groups.items()
    }


def _keep(
    out: Path, corpus: _Corpus, system: str, audios: Sequence[np.ndarray], count: int
) -> None:
    folder = out / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, int] = {}
    for id, voice, audio in zip(corpus.ids, corpus.voices, audios, strict=True):
        kept[voice] = kept.get(voice, 0) + 1
        if kept[voice] <= count and len(audio) and np.isfinite(audio).all():
            name = "-".join(_slug(part) for part in (voice, id, system))
            decode.write_wav(folder / f"{name}.wav", audio)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)
