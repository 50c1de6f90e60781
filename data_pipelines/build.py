"""Builds datasets: fetch, ingest, words, text ids, tokens of speech tokenizers.

    python -m data_pipelines.build prompts              # the embedded speech corpus
    python -m data_pipelines.build text                 # the embedded text corpus
    python -m data_pipelines.build NAME --corpus folder --path recordings/
    python -m data_pipelines.build NAME --corpus text --path notes.txt

Every stage keeps what it has finished; run the same command again after a crash, or with more
families to add a tokenizer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_type_hints

from data_pipelines import corpora, families, fetch, quarantine, report, text_corpus, tokens
from data_pipelines.build_config import (
    SPEECH_KINDS,
    Corpus,
    DatasetBuildConfig,
    TextBuildConfig,
    kind_of,
)
from data_pipelines.ingest import Limits, ingest, rejections
from data_pipelines.publish import publish
from data_pipelines.transcribe import transcribe
from slm_jax.data import dataset, manifest, schema
from slm_jax.data.split import SPLITS, split_of
from slm_jax.errors import UserError, run_main
from slm_jax.streams import fingerprint
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.segmenters import segmenter_for
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer

BuildConfig: TypeAlias = DatasetBuildConfig | TextBuildConfig
PLAN = "build.json"
STAGING = ".staging"
# What the content of words and audio depends on: a dataset is built with one set of these.
IDENTITY = ("corpus", "path", "language", "speaker", "decoder", "min_seconds", "max_seconds")
IDENTITY += ("silence_db", "asr", "max_words", "records_per_shard")


def missing_parts(cfg: BuildConfig) -> list[str]:
    """The families that the dataset still lacks; builds and fetches nothing."""
    if not (cfg.root / manifest.FILE).exists():
        return list(cfg.parts)
    there = manifest.load_manifest(cfg.root).families
    return [part for part in cfg.parts if part not in there]


def command(cfg: BuildConfig) -> str:
    """The pipeline command that builds or completes the dataset."""
    words = ["python", "-m", "data_pipelines.build", cfg.name]
    if isinstance(cfg, TextBuildConfig) and cfg.name != "text":
        words += ["--corpus", "text"]
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.name == "name" or value == field.default:
            continue
        words.append(f"--{field.name}")
        if value is not True:  # a switch takes no value
            words.append(shlex.quote(",".join(value) if isinstance(value, tuple) else str(value)))
    return " ".join(words)


def ensure_dataset(cfg: BuildConfig) -> Path:
    """Builds what a dataset lacks, fetching what that needs.

    Args:
      cfg: what to build; a complete dataset is only checked.

    Returns:
      The dataset's folder.

    Raises:
      UserError: the corpus is missing or unusable, the folder holds another dataset or a stream of
        other weights, a download failed, the disk is full. What is finished stays.
    """
    root = cfg.root
    _check_identity(root, cfg)
    if isinstance(cfg, DatasetBuildConfig):
        families.check(cfg)
    if missing_parts(cfg):
        with _locked(root):
            _build(cfg)
    if isinstance(cfg, DatasetBuildConfig) and cfg.wer and "wer" not in report.read(root):
        _word_error_rate(cfg)
    return root


def _build(cfg: BuildConfig) -> None:
    _check_identity(cfg.root, cfg)  # again: another run may have begun it meanwhile
    stages = report.Stages()
    if schema.WORDS in missing_parts(cfg):
        if isinstance(cfg, DatasetBuildConfig):
            _speech(cfg, stages)
        else:
            _text(cfg, stages)
    _families(cfg, stages)
    held = manifest.load_manifest(cfg.root)
    if held.command != command(cfg):  # families were added since
        manifest.save_manifest(cfg.root, dataclasses.replace(held, command=command(cfg)))
    report.write(cfg.root, stages.seconds)


def _speech(cfg: DatasetBuildConfig, stages: report.Stages) -> None:
    root, staging = cfg.root, cfg.root / STAGING
    asset = cfg.path or f"prompts_{cfg.language}"
    if not cfg.path and asset not in fetch.ASSETS:
        raise UserError(
            f"there are no prompts in {cfg.language!r}",
            f"choose one of {', '.join(fetch.PROMPT_LANGUAGES)}, or give a corpus by path",
        )
    with stages.timed("fetch"):
        path = fetch.locate(asset) if asset in fetch.ASSETS else Path(asset).expanduser()
        asr_folder = fetch.locate(cfg.asr)
    defaults = corpora.Defaults(cfg.language, cfg.speaker, cfg.licence)
    utterances, left_out = corpora.read(cfg.corpus, path, defaults)
    given = sum(u.text is not None for u in utterances)
    licences = sorted({u.licence for u in utterances})
    _write_plan(
        root,
        cfg,
        listing=fingerprint([(u.id, u.text) for u in utterances]),
        transcripts="all" if given == len(utterances) else "some" if given else "none",
        licences=licences,
    )
    with stages.timed("ingest"):
        limits = Limits(cfg.min_seconds, cfg.max_seconds, cfg.silence_db)
        workers = cfg.workers or os.cpu_count() or 1
        units = ingest(utterances, staging, limits, cfg.decoder, workers)
    with stages.timed("words"):
        asr = Asr(asr_folder, cfg.asr_batch_size)
        transcribe(staging, units, asr)
    for stage in ("ingest", "words"):
        for unit in range(units):
            left_out += quarantine.read(rejections(staging, stage, unit))
    quarantine.write(root / quarantine.FILE, left_out)
    with stages.timed("shards"):
        publish(
            staging,
            units,
            root,
            cfg.name,
            words_fingerprint=asr.fingerprint,
            licences=licences,
            command=command(cfg),
            records_per_shard=cfg.records_per_shard,
        )
    shutil.rmtree(staging)


def _text(cfg: TextBuildConfig, stages: report.Stages) -> None:
    asset = cfg.path or "debian_faq"
    with stages.timed("fetch"):
        path = fetch.locate(asset)
    pieces = text_corpus.read(path, cfg.max_words)
    licence = fetch.licence(asset) if cfg.licence == "unknown" else cfg.licence
    _write_plan(
        cfg.root, cfg, listing=fingerprint([(p.id, p.text) for p in pieces]), licences=[licence]
    )
    segmenter = segmenter_for(cfg.language)
    splits: dict[str, list[schema.Record]] = {split: [] for split in SPLITS}
    for piece in pieces:
        words = tuple(schema.Word(word, 0.0, 0.0) for word in segmenter.split(piece.text))
        item = schema.Utterance(
            piece.id, words, cfg.language, "", 0.0, f"{cfg.name}/{piece.source}", piece.text
        )
        splits[split_of(piece.text)].append({schema.WORDS: item})
    with stages.timed("shards"):
        dataset.write_dataset(
            cfg.root,
            cfg.name,
            [schema.words_spec(fingerprint("text", cfg.language))],
            splits,
            licences=[licence],
            command=command(cfg),
            records_per_shard=cfg.records_per_shard,
        )


def _families(cfg: BuildConfig, stages: report.Stages) -> None:
    """Adds the derived families that are missing."""
    missing = missing_parts(cfg)
    for family in missing:
        if family.startswith("text-"):
            with stages.timed(family):
                tokenizer = TextTokenizer.load(fetch.locate(cfg.text_tokenizer))
                tokens.add_text(cfg.root, family, tokenizer)
    if not isinstance(cfg, DatasetBuildConfig):
        return
    if {"taste", "speaker"} & set(missing):
        with stages.timed("taste"):
            assets = fetch.locate(cfg.asr), fetch.locate(cfg.pronunciations)
            taste = Taste.load(*assets, cfg.taste or None)
            tokens.add_taste(cfg.root, taste)
    for family in missing:
        if kind_of(family) in SPEECH_KINDS:
            with stages.timed(family):
                tokens.add_codes(cfg.root, family, families.load(cfg, family))


def _word_error_rate(cfg: DatasetBuildConfig) -> None:
    """Transcribes a dataset that came with transcripts and adds the error rate to its report."""
    if _plan(cfg.root).get("transcripts") != "all":
        raise UserError(
            f"{cfg.root} was built from audio without transcripts", "leave --wer out for it"
        )
    asr = Asr(fetch.locate(cfg.asr), cfg.asr_batch_size)
    report.add(cfg.root, "wer", report.word_error_rate(cfg.root, asr))


def _identity(cfg: BuildConfig) -> dict[str, Any]:
    identity = {name: getattr(cfg, name) for name in IDENTITY if hasattr(cfg, name)}
    return identity if hasattr(cfg, "corpus") else identity | {"corpus": "text"}


def _plan(root: Path) -> dict[str, Any]:
    path = root / PLAN
    return json.loads(path.read_text()) if path.exists() else {}


def _check_identity(root: Path, cfg: BuildConfig) -> None:
    """The folder must be empty, or hold a dataset (finished or not) of the same configuration."""
    plan = _plan(root).get("config")
    if plan is None:
        return
    for name, value in _identity(cfg).items():
        if plan.get(name) != value:
            raise UserError(
                f"{root} was built with {name} = {plan.get(name)!r}, now it is {value!r}",
                "give another name or out folder, or delete that folder",
            )


def _write_plan(root: Path, cfg: BuildConfig, **facts: Any) -> None:
    """Records the configuration; a resumed build must find the corpus as it was."""
    old = _plan(root)
    if old and old["listing"] != facts["listing"]:
        raise UserError(
            f"the corpus has changed since the unfinished build in {root} began",
            f"delete {root} and run the command again",
        )
    temporary = root / f".{PLAN}.tmp"
    temporary.write_text(json.dumps({"config": _identity(cfg), **facts}, indent=1))
    os.replace(temporary, root / PLAN)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One build of a dataset at a time; a second one waits and then finds it finished."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parse(arguments: list[str]) -> BuildConfig:
    """The configuration that command-line arguments say: one option a field of the dataclass."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("name", nargs="?", default="")
    first.add_argument("--corpus")
    known, _ = first.parse_known_args(arguments)
    text = known.corpus == "text" or (known.corpus is None and known.name == "text")
    kind = TextBuildConfig if text else DatasetBuildConfig
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.build",
        description=f"Build or complete a dataset.\n\n{kind.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help='"prompts", "text", or a name of your own')
    if text:
        parser.add_argument("--corpus", choices=["text"], help=argparse.SUPPRESS)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name == "name":
            continue
        hint, options = hints[field.name], {}
        if hint is bool:
            options = {"action": "store_true"}
        elif field.name in ("corpus", "decoder"):
            options = {"choices": [*get_args(hint), *(["text"] if hint is Corpus else [])]}
        elif hint in (int, float, str):
            options = {"type": hint}
        else:
            options = {"type": lambda value: tuple(v for v in value.split(",") if v)}
        parser.add_argument(f"--{field.name}", default=field.default, **options)  # type: ignore
    values = vars(parser.parse_args(arguments))
    try:
        return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})
    except ValueError as error:
        raise UserError(str(error), "see: python -m data_pipelines.build --help") from error


def _main() -> None:
    cfg = parse(sys.argv[1:])
    began = time.monotonic()
    root = ensure_dataset(cfg)
    print(report.text(root))
    print(f"{root}: complete ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    run_main(_main)
