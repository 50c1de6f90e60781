"""What becomes of speech on its way through a tokenizer and back, after Codec-SUPERB.

Signal metrics against the recording, and what machines make of the result: its words, its voice,
its quality. Codec-SUPERB averages over the files of a dataset, then over datasets; so is "mean"
here, with a bootstrap of utterances within each set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.evaluation import wer
from slm_jax.evaluation.bootstrap import DRAWS, Figure, ratio
from slm_jax.evaluation.scores import usable
from slm_jax.evaluation.speakers import margins
from slm_jax.evaluation.stages import Stages
from slm_jax.evaluation.tokenizers import signal
from slm_jax.evaluation.tokenizers.coders import Coded
from slm_jax.evaluation.tokenizers.corpus import Corpus

PROTOCOL = (
    "tokenizers-3: held-out utterances at 16 kHz through each system and back. A delay of at most "
    "100 ms is taken out by cross-correlation before signal metrics, and reported: of the waves if "
    "they correlate by 0.5, else of the loudness of bands, to a millisecond. mel and stft as "
    "Codec-SUPERB's; PESQ-WB, STOI, ESTOI; pitch by pyin on frames voiced in both. Word error: "
    + wer.PROTOCOL
    + ", English utterances together; dWER is the same against what the recogniser hears in the "
    "recording. Speaker: cosine of d-vectors to the recording's own; margin to other utterances of "
    "the voice over other voices; equal error rate of clips against recordings of the same and of "
    "other voices. DNSMOS overall. Means are of English, other languages stand by themselves. A "
    "clip that is empty or not finite counts as failed and is not scored; neither is a metric that "
    "finds nothing to measure. Intervals: 95 %, bootstrap over utterances."
)
MEANS = (*signal.METRICS, "speaker_cosine", "speaker_margin", "dnsmos")
RATES = ("wer", "dwer")
UNAVAILABLE = {
    "emotion or style": "no classifier of either and no corpus with emotions could be had"
}


class Clip(NamedTuple):
    """What a system gave back, and what it sent.

    Attributes:
      audio: float32 [n], 16 kHz mono.
      bits: that were sent; None where nothing is coded.
      coded: codes, where these are what was sent.
    """

    audio: np.ndarray
    bits: float | None = None
    coded: Coded | None = None


System = Callable[[np.ndarray], Clip]


@dataclasses.dataclass(frozen=True)
class Judges:
    """What listens; audio is float32 [n], 16 kHz mono.

    Attributes:
      transcribe: audios to texts.
      embed: audio to a unit vector that tells the voice.
      quality: audio to a mean opinion score.
    """

    transcribe: Callable[[list[np.ndarray]], list[str]]
    embed: Callable[[np.ndarray], np.ndarray]
    quality: Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What the judges say of the recordings: transcripts, and vectors [n, D]."""

    heard: list[str]
    vectors: np.ndarray


KINDS = ("speak", "signal", "transcribe", "voice", "quality")  # stages of one system


def listen_first(corpus: Corpus, judges: Judges, stages: Stages) -> Reference:
    """The judges on the recordings: stages "transcribe" and "voice"."""
    heard = stages.map(
        "transcribe",
        "recordings: transcribing",
        lambda rows: judges.transcribe([corpus.audios[i] for i in rows]),
    )
    vectors = stages.map(
        "voice",
        "recordings: whose voice",
        lambda rows: [judges.embed(corpus.audios[i]) for i in rows],
    )
    return Reference(heard, np.stack(vectors))


def resynthesise(
    name: str,
    system: System,
    corpus: Corpus,
    reference: Reference,
    judges: Judges,
    stages: Stages,
) -> tuple[dict[str, Any], list[Clip]]:
    """Measures one system, in stages of `KINDS`.

    Returns:
      {"bits_per_second", "failed", "sets": set -> metric -> figure, "mean": metric -> figure,
      "eer"}; a figure is {value, low, high, n}, or None where nothing could be measured. All but
      "sets" and "failed" is of `corpus.main`. And what the system made of each utterance.
    """
    spoken = stages.map(
        "speak", f"{name}: coding", lambda rows: [system(corpus.audios[i]) for i in rows]
    )
    clips = [np.asarray(one.audio, np.float32) for one in spoken]
    good = [usable(clip) for clip in clips]
    values = {metric: np.full(len(clips), np.nan) for metric in MEANS}
    measured = stages.map(
        "signal",
        f"{name}: comparing signals",
        lambda rows: [signal.compare(corpus.audios[i], clips[i]) if good[i] else {} for i in rows],
    )
    for i, found in enumerate(measured):
        for metric, value in found.items():
            values[metric][i] = value

    def hear(rows: list[int]) -> list[str | None]:
        asked = [i for i in rows if good[i]]
        texts = judges.transcribe([clips[i] for i in asked]) if asked else []
        heard = dict(zip(asked, texts, strict=True))
        return [heard.get(i) for i in rows]

    heard = stages.map("transcribe", f"{name}: transcribing", hear)
    vectors = stages.map(
        "voice",
        f"{name}: whose voice",
        lambda rows: [
            judges.embed(clips[i]) if good[i] else np.full_like(reference.vectors[i], np.nan)
            for i in rows
        ],
    )
    vectors = np.stack(vectors)
    values["speaker_cosine"] = np.sum(vectors * reference.vectors, axis=1)
    main, voices = corpus.main, np.array(corpus.voices)
    compared = vectors[main], reference.vectors[main], voices[main]
    values["speaker_margin"][main] = margins(*compared)
    values["dnsmos"] = np.array(
        stages.map(
            "quality",
            f"{name}: DNSMOS",
            lambda rows: [judges.quality(clips[i]) if good[i] else np.nan for i in rows],
        ),
        float,
    )
    edits = {
        "wer": _edits(corpus.texts, heard),
        "dwer": _edits(
            [text and said for text, said in zip(corpus.texts, reference.heard, strict=True)],
            heard,
        ),
    }
    members = {
        name: np.array([s == name for s in corpus.sets]) for name in dict.fromkeys(corpus.sets)
    }
    sets = {
        name: {metric: _json(ratio(values[metric][rows], None)) for metric in MEANS}
        | {rate: _json(ratio(wrong[rows], words[rows])) for rate, (wrong, words) in edits.items()}
        for name, rows in members.items()
    }
    counted = [rows & main for rows in members.values()]
    mean = {metric: _json(mean_of_sets(values[metric], counted)) for metric in MEANS}
    mean |= {rate: _json(ratio(wrong, words)) for rate, (wrong, words) in edits.items()}
    sent = [(one.bits, len(corpus.audios[i])) for i, one in enumerate(spoken) if main[i]]
    bits, samples = zip(*sent, strict=True)
    coded = all(one is not None for one in bits)
    return {
        "bits_per_second": sum(bits) / sum(samples) * AUDIO_RATE if coded else None,
        "failed": len(clips) - sum(good),
        "sets": sets,
        "mean": mean,
        "eer": equal_error_rate(*_trials(*compared)),
    }, spoken


def mean_of_sets(values: np.ndarray, members: Sequence[np.ndarray]) -> Figure | None:
    """The unweighted mean of the means of sets, each of which has a value.

    Args:
      values: [n]; NaN does not count.
      members: bool [n] of each set.
    """
    kept = [values[rows & np.isfinite(values)] for rows in members]
    kept = [some for some in kept if len(some)]
    if not kept:
        return None
    rng = np.random.default_rng(0)
    drawn = np.mean(
        [some[rng.integers(0, len(some), (DRAWS, len(some)))].mean(1) for some in kept], axis=0
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = float(np.mean([some.mean() for some in kept]))
    return Figure(value, float(low), float(high), sum(map(len, kept)))


def equal_error_rate(same: np.ndarray, other: np.ndarray) -> float | None:
    """Where as many pairs of one voice are refused as pairs of two are taken.

    Args:
      same, other: cosines of pairs of one voice, of two voices.

    Returns:
      The mean of both rates at the threshold where they are nearest; None without pairs.
    """
    if not len(same) or not len(other):
        return None
    thresholds = np.unique(np.concatenate([same, other]))
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    taken = 1 - np.searchsorted(np.sort(other), thresholds) / len(other)
    at = np.argmin(np.abs(refused - taken))
    return float((refused[at] + taken[at]) / 2)


def _trials(
    vectors: np.ndarray, originals: np.ndarray, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of clips to recordings of their voice (never their own) and of others."""
    good = np.isfinite(vectors).all(axis=1)
    cosines = vectors @ originals.T
    alike = (names[:, None] == names[None]) & good[:, None]
    np.fill_diagonal(alike, False)
    return cosines[alike], cosines[(names[:, None] != names[None]) & good[:, None]]


def _edits(
    texts: Sequence[str | None], heard: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Word errors and words of each utterance, NaN where there is no text or no clip."""
    wrong, words = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
    for i, (text, said) in enumerate(zip(texts, heard, strict=True)):
        if text and said is not None and (spelled := wer.normalize(text)):
            wrong[i] = wer.count_errors(spelled, wer.normalize(said)).total
            words[i] = len(spelled)
    return wrong, words


def _json(figure: Figure | None) -> Mapping[str, float | int] | None:
    return figure.to_json() if figure else None
