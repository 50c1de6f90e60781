"""The whole comparison of tokenizers, from names of datasets: the table, curves, players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from rapidfuzz.distance import Levenshtein

from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError
from slm_jax.evaluation.bootstrap import ratio
from slm_jax.evaluation.degrade import white_noise
from slm_jax.evaluation.pocket import PocketSphinx
from slm_jax.evaluation.quality import overall
from slm_jax.evaluation.speakers import SpeakerEncoder
from slm_jax.evaluation.stages import Stages
from slm_jax.evaluation.token_statistics import token_statistics
from slm_jax.evaluation.tokenizers import phones, report
from slm_jax.evaluation.tokenizers.coders import (
    Coded,
    Coder,
    features_coder,
    mel_coder,
    taste_coder,
)
from slm_jax.evaluation.tokenizers.corpus import Corpus, open_held_out, open_training
from slm_jax.evaluation.tokenizers.ladder import LADDER
from slm_jax.evaluation.tokenizers.probing import Probing, run_probes
from slm_jax.evaluation.tokenizers.resynthesis import (
    KINDS,
    PROTOCOL,
    UNAVAILABLE,
    Clip,
    Judges,
    System,
    listen_first,
    resynthesise,
)
from slm_jax.evaluation.tokenizers.systems import Judged, taste_system
from slm_jax.evaluation.verdicts import Verdicts
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.taste_tokenizer import TasteTokenizer
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.tokenizers.unit_encoder import UnitEncoder

_NOISE, _GAIN = 20.0, 0.5  # dB of white noise, factor (-6 dB): damages that units should survive
VERDICTS, PROBES = "verdicts.jsonl", "probes.jsonl"  # what was said of clips, and of codes
_LAYER = 3  # of Whisper, whose features stand beside codes: tiny's last but one
_CLIPS = 2  # utterances of each set whose audio is kept


def compare(
    systems: Mapping[str, System],
    coders: Mapping[str, Coder],
    corpus: Corpus,
    judges: Judges,
    out: Path,
    *,
    aligner: phones.Aligner,
    probing: Probing | None = None,
) -> dict[str, Any]:
    """Measures systems side by side; what is finished stands in `out` as soon as it is known.

    Args:
      systems: by name; of one kind (the first word of the name) those at several rates.
      coders: what codes are made by, under the names of their systems if they have one, and what
        makes vectors that these are compared with.
      corpus: what they are given.
      judges: what listens.
      out: folder for tokenizers.json, .md, .html and clips/.
      aligner: places phones, as `PocketSphinx.phones`.
      probing: what probes are trained on; None for no probes.

    Returns:
      What stands in tokenizers.json; see `report.write`.
    """
    stages = Stages(_plan(systems, coders), len(corpus.ids))
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "corpus": {name: _size(corpus, name) for name in dict.fromkeys(corpus.sets)},
        "unavailable": UNAVAILABLE,
        "systems": {},
        "statistics": {},
        "phones": {"protocol": phones.PROTOCOL, "systems": {}},
        "clips": [],
    }
    reference = listen_first(corpus, judges, stages)
    coded: dict[str, list[Coded | None]] = {}
    for name, system in systems.items():
        found, spoken = resynthesise(name, system, corpus, reference, judges, stages)
        result["systems"][name] = found
        result["clips"] += _keep(out, corpus, name, [clip.audio for clip in spoken])
        coded[name] = [clip.coded for clip in spoken]
        report.write(out, result)
    placed = stages.map(
        "phones", "recordings: placing phones", lambda rows: phones.place(corpus, rows, aligner)
    )
    for name, coder in coders.items():
        if name not in systems:
            coded[name] = _code(name, coder, corpus, stages)
        if coder.vocab:
            result["statistics"][name] = _units(name, coder, coded[name], corpus, stages)
        judged = phones.judge_units(coder, coded[name], placed, corpus.voices)
        result["phones"]["systems"][name] = judged
        report.write(out, result)
    if probing:

        def known(probes: dict[str, Any]) -> None:
            result["probes"] = probes
            report.write(out, result)

        run_probes(probing, coders, Verdicts(out / PROBES), known)
    return result


def _plan(systems: Mapping[str, System], coders: Mapping[str, Coder]) -> list[str]:
    plan = ["transcribe", "voice", *KINDS * len(systems), "phones"]
    for name, coder in coders.items():
        plan += ["code"] if name not in systems else []
        plan += ["units"] if coder.vocab else []
    return plan


def run_suite(
    datasets: Sequence[str],
    recordings: Corpus,
    tokenizers: Sequence[Judged],
    out: Path,
    *,
    taste: Path | None,
    whisper: Path,
    pronunciations: Path,
    speaker_encoder: Path | None,
    text_tokenizer: Path,
    limit: int | None,
    probes: int | None,
    genders: Mapping[str, str],
) -> dict[str, Any]:
    """Measures the anchor ladder, TASTE and other tokenizers on held-out speech of datasets.

    Args:
      datasets: names or folders, with "words" and "audio".
      recordings: further speech that no tokenizer was trained on, in any language.
      tokenizers: beside TASTE.
      out: see `compare`. What judges said is kept in its verdicts.jsonl, and not asked again; what
        probes said, in its probes.jsonl.
      taste: folder of another TASTE than the starter.
      whisper: recogniser, below TASTE, and the features that codes are compared with.
      pronunciations: that TASTE reads by.
      speaker_encoder: the d-vector ONNX file; None where onnxruntime is missing, which is refused.
      text_tokenizer: of the language model, for the cost of TASTE's words.
      limit: utterances of each dataset at most.
      probes: utterances of each train split that probes learn from; they are asked about all
        held-out ones. None for no probes.
      genders: of speakers by name, for a probe.

    Raises:
      UserError: a dataset, file or package of the extra `eval` is missing, all speech is of one
        voice, or two tokenizers have one name.
    """
    corpus = open_held_out(datasets, limit)
    corpus.extend(recordings)
    if len(set(corpus.voices)) < 2:
        raise UserError("all of it is one voice", "add a dataset of another: --datasets A B")
    if len({one.name for one in tokenizers}) < len(tokenizers):
        raise UserError("two tokenizers are named and coded alike", "compare them in runs apart")
    probing = None
    if probes is not None:
        probing = Probing(open_training(datasets, probes), open_held_out(datasets, None), genders)
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
    tokenizer = TasteTokenizer(Taste.load(whisper, pronunciations, taste), asr)
    text = TextTokenizer.load(text_tokenizer)
    systems = {
        name: lambda audio, anchor=anchor: Clip(*anchor(audio)) for name, anchor in LADDER.items()
    }
    systems["TASTE"] = taste_system(tokenizer, text)
    systems |= {one.name: one.system for one in tokenizers if one.system}
    coders = {"TASTE": taste_coder(tokenizer)} | {one.name: one.coder for one in tokenizers}
    features = features_coder(UnitEncoder.load(whisper, _LAYER))
    coders |= {
        f"features: {whisper.name} layer {_LAYER}": features,
        "features: log-mel": mel_coder(),
    }
    aligner = PocketSphinx().phones
    return compare(systems, coders, corpus, judges, out, aligner=aligner, probing=probing)


def _code(name: str, coder: Coder, corpus: Corpus, stages: Stages) -> list[Coded | None]:
    return stages.map(
        "code", f"{name}: coding", lambda rows: [coder.encode(corpus.audios[i]) for i in rows]
    )


def _size(corpus: Corpus, name: str) -> dict[str, Any]:
    own = [i for i, one in enumerate(corpus.sets) if one == name]
    return {
        "utterances": len(own),
        "minutes": sum(len(corpus.audios[i]) for i in own) / AUDIO_RATE / 60,
        "languages": sorted({corpus.languages[i] for i in own}),
        "licence": corpus.licences.get(name, "unknown"),
        "in_means": bool(corpus.main[own].any()),
    }


def _units(
    name: str, coder: Coder, coded: Sequence[Coded | None], corpus: Corpus, stages: Stages
) -> dict[str, Any]:
    """Statistics of the codes, and how many of them change with a little noise or gain: the edit
    distance of whole items over the items of the clean recording."""

    def errors(rows: list[int]) -> list[tuple[float, float]]:
        damaged = ((white_noise(corpus.audios[i], _NOISE), _GAIN * corpus.audios[i]) for i in rows)
        return [
            tuple(_distance(coded[i], coder.encode(audio)) for audio in pair)
            for i, pair in zip(rows, damaged, strict=True)
        ]

    wrong = np.array(stages.map("units", f"{name}: codes under noise and gain", errors))
    kept = [i for i, one in enumerate(coded) if one is not None]
    lengths = np.array([np.nan if one is None else len(one.values) for one in coded])
    figures = {damage: ratio(wrong[:, at], lengths) for at, damage in enumerate(("noise", "gain"))}
    seconds = sum(len(corpus.audios[i]) for i in kept) / AUDIO_RATE
    statistics = token_statistics([coded[i].values for i in kept], coder.vocab, seconds)
    for level in statistics["levels"]:
        del level["counts"]
    return statistics | {key: one.to_json() if one else None for key, one in figures.items()}


def _distance(clean: Coded | None, damaged: Coded | None) -> float:
    if clean is None or damaged is None:
        return np.nan
    items = [[tuple(item) for item in one.values] for one in (clean, damaged)]
    return float(Levenshtein.distance(*items))


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
