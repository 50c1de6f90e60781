"""The whole comparison of tokenizers, from names of datasets: the table, curves, players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein

from slm_jax.audio.decode import load
from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, AUDIO_RATE, WORDS
from slm_jax.errors import UserError
from slm_jax.evaluation.bootstrap import ratio
from slm_jax.evaluation.degrade import white_noise
from slm_jax.evaluation.quality import overall
from slm_jax.evaluation.run import held_out_records
from slm_jax.evaluation.speakers import SpeakerEncoder
from slm_jax.evaluation.stages import Stages
from slm_jax.evaluation.token_statistics import token_statistics
from slm_jax.evaluation.tokenizers import report
from slm_jax.evaluation.tokenizers.ladder import LADDER
from slm_jax.evaluation.tokenizers.resynthesis import (
    KINDS,
    PROTOCOL,
    Clip,
    Corpus,
    Judges,
    System,
    listen_first,
    resynthesise,
)
from slm_jax.evaluation.tokenizers.systems import NamedCodec, codec_system, taste_system
from slm_jax.evaluation.verdicts import Verdicts
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer

_NOISE, _GAIN = 20.0, 0.5  # dB of white noise, factor (-6 dB): damages that units should survive
VERDICTS = "verdicts.jsonl"
_CLIPS = 2  # utterances of each set whose audio is kept


def compare(
    systems: Mapping[str, System],
    vocabularies: Mapping[str, Sequence[int]],
    corpus: Corpus,
    judges: Judges,
    out: Path,
) -> dict[str, Any]:
    """Measures systems side by side; what is finished stands in `out` as soon as it is known.

    Args:
      systems: by name; of one kind (the first word of the name) those at several rates.
      vocabularies: codes per level of those that send codes.
      corpus: what they are given.
      judges: what listens.
      out: folder for tokenizers.json, .md, .html and clips/.

    Returns:
      What stands in tokenizers.json; see `report.write`.
    """
    plan = ["transcribe", "voice", *KINDS * len(systems), *["units"] * len(vocabularies)]
    stages = Stages(plan, len(corpus.ids))
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "corpus": {name: _size(corpus, name) for name in dict.fromkeys(corpus.sets)},
        "systems": {},
        "statistics": {},
        "clips": [],
    }
    reference = listen_first(corpus, judges, stages)
    codes: dict[str, list[np.ndarray | None]] = {}
    for name, system in systems.items():
        found, spoken = resynthesise(name, system, corpus, reference, judges, stages)
        result["systems"][name] = found
        result["clips"] += _keep(out, corpus, name, [clip.audio for clip in spoken])
        codes[name] = [clip.codes for clip in spoken]
        report.write(out, result)
    for name, vocab in vocabularies.items():
        result["statistics"][name] = _units(name, systems[name], vocab, codes[name], corpus, stages)
        report.write(out, result)
    return result


def run_suite(
    datasets: Sequence[str],
    codecs: Sequence[NamedCodec],
    out: Path,
    *,
    taste: Path | None,
    whisper: Path,
    pronunciations: Path,
    speaker_encoder: Path | None,
    text_tokenizer: Path,
    limit: int | None,
) -> dict[str, Any]:
    """Measures the anchor ladder, TASTE and `codecs` on held-out speech of datasets.

    Args:
      datasets: names or folders, with "words" and "audio".
      codecs: beside the starters that come with the package.
      out: see `compare`. What judges said is kept in its verdicts.jsonl, and not asked again.
      taste: folder of another TASTE than the starter.
      whisper: recogniser, and below TASTE.
      pronunciations: that TASTE reads by.
      speaker_encoder: the d-vector ONNX file; None where onnxruntime is missing, which is refused.
      text_tokenizer: of the language model, for the cost of TASTE's words.
      limit: utterances of each dataset at most.

    Raises:
      UserError: a dataset, file or package of the extra `eval` is missing.
    """
    corpus = open_corpus(datasets, limit)
    asr, book = Asr(whisper), Verdicts(out / VERDICTS)
    voices = SpeakerEncoder(speaker_encoder)
    judges = Judges(
        transcribe=book.transcribing(
            f"{whisper.name}, greedy",
            lambda audios: [heard.text for heard in asr.transcribe(audios, word_times=False)],
        ),
        embed=book.embedding(voices),
        quality=book.scoring(overall),
    )
    tokenizer = Taste.load(whisper, pronunciations, taste)
    text = TextTokenizer.load(text_tokenizer)
    systems = {
        name: lambda audio, anchor=anchor: Clip(*anchor(audio)) for name, anchor in LADDER.items()
    }
    systems["TASTE"] = taste_system(tokenizer, asr, text)
    systems |= {one.name: codec_system(one.codec) for one in codecs}
    vocabularies = {"TASTE": tokenizer.spec.vocab}
    vocabularies |= {one.name: one.codec.spec.vocab for one in codecs}
    return compare(systems, vocabularies, corpus, judges, out)


def open_corpus(datasets: Sequence[str], limit: int | None) -> Corpus:
    """Held-out utterances of datasets with "words" and "audio"; `limit` of each at most. Texts that
    are not English are left out, the utterances are not.

    Raises:
      UserError: a dataset has no held-out utterance, or all of them are of one voice.
    """
    corpus = Corpus([], [], [], [], [])
    for name in datasets:
        opened = registry.get(name).open((WORDS, AUDIO))
        records = held_out_records(opened, [WORDS, AUDIO])[:limit]
        if not records:
            raise UserError(f"dataset {name} has no held-out utterance", "leave it out")
        for record in records:
            utterance = record[WORDS]
            english = utterance.language == "en"
            corpus.ids.append(f"{Path(name).name}/{utterance.id}")
            corpus.sets.append(Path(name).name)
            corpus.voices.append(f"{Path(name).name}/{utterance.speaker}")
            corpus.texts.append(utterance.text if english else None)
            corpus.audios.append(load(record[AUDIO].flac))
    if len(set(corpus.voices)) < 2:
        raise UserError("all of it is one voice", "add a dataset of another: --datasets A B")
    return corpus


def _size(corpus: Corpus, name: str) -> dict[str, Any]:
    own = [len(a) for a, s in zip(corpus.audios, corpus.sets, strict=True) if s == name]
    return {"utterances": len(own), "minutes": sum(own) / AUDIO_RATE / 60}


def _units(
    name: str,
    system: System,
    vocab: Sequence[int],
    clean: Sequence[np.ndarray | None],
    corpus: Corpus,
    stages: Stages,
) -> dict[str, Any]:
    """Statistics of the codes, and how many of them change with a little noise or gain: the edit
    distance of whole items over the items of the clean recording."""

    def errors(rows: list[int]) -> list[tuple[float, float]]:
        damaged = ((white_noise(corpus.audios[i], _NOISE), _GAIN * corpus.audios[i]) for i in rows)
        return [
            tuple(_distance(clean[i], system(audio).codes) for audio in pair)
            for i, pair in zip(rows, damaged, strict=True)
        ]

    wrong = np.array(stages.map("units", f"{name}: codes under noise and gain", errors))
    coded = [i for i, codes in enumerate(clean) if codes is not None]
    lengths = np.array([np.nan if codes is None else len(codes) for codes in clean])
    figures = {damage: ratio(wrong[:, at], lengths) for at, damage in enumerate(("noise", "gain"))}
    seconds = sum(len(corpus.audios[i]) for i in coded) / AUDIO_RATE
    statistics = token_statistics([clean[i] for i in coded], vocab, seconds)
    for level in statistics["levels"]:
        del level["counts"]
    return statistics | {key: one.to_json() if one else None for key, one in figures.items()}


def _distance(clean: np.ndarray | None, damaged: np.ndarray | None) -> float:
    if clean is None or damaged is None:
        return np.nan
    return float(Levenshtein.distance(*([tuple(item) for item in x] for x in (clean, damaged))))


def _keep(
    out: Path, corpus: Corpus, system: str, clips: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Saves the clips of the first utterances of each set."""
    folder = out / report.CLIPS
    folder.mkdir(parents=True, exist_ok=True)
    kept, seen = [], dict.fromkeys(corpus.sets, 0)
    for i, clip in enumerate(clips):
        seen[corpus.sets[i]] += 1
        if seen[corpus.sets[i]] <= _CLIPS and len(clip):
            file = f"{corpus.ids[i]} {system}.flac".replace("/", "_").replace(" ", "_")
            soundfile.write(folder / file, np.clip(clip, -1, 1), AUDIO_RATE)
            text = corpus.texts[i]
            kept.append({"id": corpus.ids[i], "text": text, "system": system, "file": file})
    return kept
