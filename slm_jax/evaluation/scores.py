"""What judges say of the clips of one system, and how it compares with the originals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from slm_jax.evaluation import wer
from slm_jax.evaluation.bootstrap import ratio
from slm_jax.evaluation.speakers import margins
from slm_jax.evaluation.stages import Stages
from slm_jax.tokenizers.asr import Transcript

NEAR = 0.05  # seconds that a word's duration may differ
Span: TypeAlias = tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Judges:
    """What listens. Audio is float32 [n], 16 kHz mono, never empty.

    Attributes:
      transcribe: recognisers by name; the first is the one that judges robustness.
      align: audio and its words to (start, end) in seconds of each, None for words not found.
      embed: audio to a unit vector that tells the voice.
      quality: audio to a mean opinion score.
      realign: audios and transcripts to words with times, for the tokenizer's encoder.
    """

    transcribe: Mapping[str, Callable[[list[np.ndarray]], list[str]]]
    align: Callable[[np.ndarray, Sequence[str]], list[Span]]
    embed: Callable[[np.ndarray], np.ndarray]
    quality: Callable[[np.ndarray], float]
    realign: Callable[[list[np.ndarray], list[str]], list[Transcript]]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """One entry an utterance, NaN or None where its clip failed.

    Attributes:
      failed: bool [n], the clip is empty or not finite.
      words: int [n], words of the normalised transcript.
      edits: recogniser -> [n], word errors.
      spans: of each word.
      vectors: [n, D].
      quality: [n].
    """

    failed: np.ndarray
    words: np.ndarray
    edits: Mapping[str, np.ndarray]
    spans: list[list[Span]]
    vectors: np.ndarray
    quality: np.ndarray


def judge_clips(
    system: str,
    clips: Sequence[np.ndarray],
    texts: Sequence[str],
    words: Sequence[Sequence[str]],
    judges: Judges,
    stages: Stages,
) -> Scores:
    """Hands the clips of a system, one an utterance, to all judges.

    Its stages are those of `judges.transcribe`, "align", "speaker" and "quality".
    """
    good = [usable(clip) for clip in clips]
    edits = {
        judge: count_edits(f"{system}: {judge}", clips, texts, judge, judges, stages)
        for judge in judges.transcribe
    }
    spans = stages.map(
        "align",
        f"{system}: aligning",
        lambda rows: [
            judges.align(clips[i], words[i]) if good[i] else [None] * len(words[i]) for i in rows
        ],
    )
    found = stages.map(
        "speaker",
        f"{system}: comparing voices",
        lambda rows: [judges.embed(clips[i]) if good[i] else None for i in rows],
    )
    width = next((len(vector) for vector in found if vector is not None), 1)
    vectors = [np.full(width, np.nan) if vector is None else vector for vector in found]
    quality = stages.map(
        "quality",
        f"{system}: DNSMOS",
        lambda rows: [judges.quality(clips[i]) if good[i] else np.nan for i in rows],
    )
    return Scores(
        failed=~np.array(good),
        words=np.array([len(wer.normalize(text)) for text in texts]),
        edits=edits,
        spans=spans,
        vectors=np.stack(vectors),
        quality=np.array(quality, float),
    )


def count_edits(
    title: str,
    clips: Sequence[np.ndarray],
    texts: Sequence[str],
    judge: str,
    judges: Judges,
    stages: Stages,
) -> np.ndarray:
    """Word errors of each clip, NaN where it failed: a stage of the kind `judge`."""

    def hear(rows: list[int]) -> list[float]:
        good = [i for i in rows if usable(clips[i])]
        heard = judges.transcribe[judge]([clips[i] for i in good]) if good else []
        edits = {
            i: wer.count_errors(wer.normalize(texts[i]), wer.normalize(said)).total
            for i, said in zip(good, heard, strict=True)
        }
        return [edits.get(i, np.nan) for i in rows]

    return np.array(stages.map(judge, title, hear), float)


def usable(clip: np.ndarray) -> bool:
    """Whether there is anything to judge."""
    return len(clip) > 0 and bool(np.isfinite(clip).all())


def summarise(
    scores: Scores, original: Scores, voices: Sequence[str], rows: Sequence[int]
) -> dict[str, Any]:
    """The figures of some utterances of a system.

    Args:
      scores: of the system.
      original: of the originals.
      voices: who speaks each utterance.
      rows: the utterances that count; voices are compared with all.

    Returns:
      utterances, failed; wer: recogniser -> {rate, difference}; durations: {share, words,
      unaligned, unaligned_original}; speaker: {margin, of_original}; dnsmos: {mean, difference}.
      A figure is {value, low, high, n}, or None where nothing could be measured; differences are
      to the original.
    """
    rows = np.array(rows)
    near, compared, lost, lost_original = _durations(scores.spans, original.spans, rows)
    own = margins(original.vectors, original.vectors, voices)[rows]
    margin = margins(scores.vectors, original.vectors, voices)[rows]
    return {
        "utterances": len(rows),
        "failed": int(scores.failed[rows].sum()),
        "wer": {
            judge: word_errors(edits, original.edits[judge], scores.words, rows)
            for judge, edits in scores.edits.items()
        },
        "durations": {
            "share": _figure(near, compared),
            "words": int(compared.sum()),
            "unaligned": lost,
            "unaligned_original": lost_original,
        },
        "speaker": {"margin": _figure(margin), "of_original": _figure(margin, own)},
        "dnsmos": {
            "mean": _figure(scores.quality[rows]),
            "difference": _figure(scores.quality[rows] - original.quality[rows]),
        },
    }


def word_errors(
    edits: np.ndarray, original: np.ndarray, words: np.ndarray, rows: Sequence[int]
) -> dict[str, Any]:
    """{rate, difference to the original}, over the words of `rows` together."""
    rows = np.array(rows)
    return {
        "rate": _figure(edits[rows], words[rows]),
        "difference": _figure((edits - original)[rows], words[rows]),
    }


def _durations(
    spans: Sequence[Sequence[Span]], original: Sequence[Sequence[Span]], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Words that kept their duration and words compared, [n] each; words lost in either."""
    near, compared = np.zeros(len(rows)), np.zeros(len(rows))
    lost = lost_original = 0
    for at, i in enumerate(rows):
        for ours, theirs in zip(spans[i], original[i], strict=True):
            lost += ours is None
            lost_original += theirs is None
            if ours and theirs:
                difference = abs((ours[1] - ours[0]) - (theirs[1] - theirs[0]))
                near[at] += difference <= NEAR + 1e-6
                compared[at] += 1
    return near, compared, lost, lost_original


def _figure(top: np.ndarray, bottom: np.ndarray | None = None) -> dict[str, Any] | None:
    found = ratio(top, bottom)
    return found.to_json() if found else None
