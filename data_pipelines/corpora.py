"""Corpus readers: each lists a corpus as `SourceUtterance`s, and what it leaves out as `Rejected`.

Listing reads transcripts only, never audio. Readers take the corpus as its makers publish it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines import fetch, quarantine
from data_pipelines.quarantine import Rejected
from slm_jax.errors import UserError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".g722", ".m4a", ".aac", ".webm", ".mp4"}
    | {".aif", ".aiff"}
)
ASIDE = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")


@dataclasses.dataclass(frozen=True)
class SourceUtterance:
    """One utterance as its corpus has it.

    Attributes:
      id: unique in the corpus.
      audio: the file that holds it.
      text: the transcript as written, None if there is none.
      speaker: name in the corpus, "" if unknown.
      language: BCP 47 code.
      source: corpus name and file, for people.
      licence: of the corpus.
      start, end: seconds within the file; None for its beginning or end.
      seconds: length that the catalogue promises, None if it does not.
    """

    id: str
    audio: Path
    text: str | None
    speaker: str
    language: str
    source: str
    licence: str
    start: float | None = None
    end: float | None = None
    seconds: float | None = None


Listing = Iterator[SourceUtterance | Rejected]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a reader says of utterances when the corpus itself is silent about it."""

    language: str = "en"
    speaker: str = ""
    licence: str = "unknown"


def read(kind: str, path: Path, defaults: Defaults) -> tuple[list[SourceUtterance], list[Rejected]]:
    """Lists a corpus in a fixed order.

    Args:
      kind: a key of `READERS`.
      path: the corpus' folder (or its JSONL file).
      defaults: language, speaker and licence where the corpus names none.

    Raises:
      UserError: unknown kind, nothing at `path`, or no utterance in it.
    """
    if kind not in READERS:
        raise UserError(f"unknown corpus kind {kind!r}", f"choose one of: {', '.join(READERS)}")
    if not path.exists():
        raise UserError(f"the corpus {path} does not exist", "check the path of the corpus")
    utterances: dict[str, SourceUtterance] = {}
    rejected: list[Rejected] = []
    for item in READERS[kind](path, defaults):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.id in utterances:
            rejected.append(Rejected(item.id, str(item.audio), quarantine.DUPLICATE))
        else:
            utterances[item.id] = item
    if not utterances:
        why = "; ".join(f"{n} {reason}" for reason, n in quarantine.summary(rejected).items())
        raise UserError(
            f"{path} holds no utterance that the reader {kind!r} understands ({why or 'empty'})",
            f"check the path, or that the corpus is laid out as one of: {', '.join(READERS)}",
        )
    return list(utterances.values()), rejected


def asterisk(root: Path, defaults: Defaults) -> Listing:
    """The Asterisk prompts as `fetch.prompts` lays them out.

    `transcripts.txt` has lines `name: text`, comments after ";". A text wholly in brackets
    describes a sound; brackets beside words are asides to the reader and are removed.
    """
    lang = defaults.language
    listing = root / "transcripts.txt"
    if not listing.exists():
        raise UserError(f"{root} has no transcripts.txt", "give a folder made by the fetcher")
    source = f"asterisk-{lang}"
    listed = set()
    for line in listing.read_text("utf-8-sig").splitlines():
        name, colon, written = line.partition(":")
        if not line.strip() or line.startswith(";") or not colon:
            continue
        listed.add(name)
        audio = root / "sounds" / f"{name}.g722"
        text = " ".join(ASIDE.sub(" ", written).split())
        if not text:
            yield Rejected(f"{source}/{name}", str(audio), quarantine.NOT_SPEECH, written.strip())
        elif not audio.exists():
            yield Rejected(f"{source}/{name}", str(audio), quarantine.NO_AUDIO)
        else:
            licence = defaults.licence
            if licence == "unknown":
                licence = fetch.licence(f"prompts_{lang}")
            yield SourceUtterance(
                f"{source}/{name}", audio, text, source, lang, f"{source}/{name}.g722", licence
            )
    for audio in sorted((root / "sounds").rglob("*.g722")):
        name = str(audio.relative_to(root / "sounds").with_suffix(""))
        if name not in listed:
            yield Rejected(f"{source}/{name}", str(audio), quarantine.NO_TRANSCRIPT)


def librispeech(root: Path, defaults: Defaults) -> Listing:
    """A LibriSpeech tree: SPEAKER/CHAPTER/*.trans.txt beside FLAC files.

    Its transcripts are upper case, which neither a text LLM nor an ASR writes: lower-cased here.
    """
    for listing in sorted(root.rglob("*.trans.txt")):
        for line in listing.read_text("utf-8").splitlines():
            name, _, text = line.partition(" ")
            if name:
                yield _libri(listing.with_name(f"{name}.flac"), name, text.lower(), root, defaults)


def libritts(root: Path, defaults: Defaults) -> Listing:
    """A LibriTTS tree: each WAV beside its .normalized.txt."""
    for file in sorted(root.rglob("*.normalized.txt")):
        name = file.name.removesuffix(".normalized.txt")
        text = file.read_text("utf-8").strip()
        yield _libri(file.with_name(f"{name}.wav"), name, text, root, defaults)


def _libri(
    audio: Path, name: str, text: str, root: Path, defaults: Defaults
) -> SourceUtterance | Rejected:
    if not audio.exists():
        return Rejected(name, str(audio), quarantine.NO_AUDIO)
    speaker = re.split("[-_]", name, maxsplit=1)[0]
    source = str(audio.relative_to(root))
    licence = "CC-BY-4.0" if defaults.licence == "unknown" else defaults.licence
    return SourceUtterance(name, audio, text, speaker, defaults.language, source, licence)


def ljspeech(root: Path, defaults: Defaults) -> Listing:
    """LJSpeech: metadata.csv with `id|text|normalised text`, audio in wavs/."""
    listing = root / "metadata.csv"
    if not listing.exists():
        raise UserError(f"{root} has no metadata.csv", "give the folder that holds metadata.csv")
    licence = "public domain" if defaults.licence == "unknown" else defaults.licence
    for line in listing.read_text("utf-8").splitlines():
        name, *texts = line.split("|")
        audio = root / "wavs" / f"{name}.wav"
        if not texts or not audio.exists():
            yield Rejected(name, str(audio), quarantine.NO_AUDIO if texts else quarantine.BAD_ENTRY)
            continue
        yield SourceUtterance(
            name, audio, texts[-1], "LJ", defaults.language, f"ljspeech/{name}", licence
        )


def sphinx(root: Path, defaults: Defaults) -> Listing:
    """CMU Sphinx: `transcription` has lines `<s> text </s> (name)`, for name.wav."""
    listing = root / "transcription"
    if not listing.exists():
        raise UserError(f"{root} has no transcription", "give the folder that holds it")
    for line in listing.read_text("utf-8").splitlines():
        found = re.fullmatch(r"(?:<s> )?(.*?)(?: </s>)? \((\S+)\)", line.strip())
        if not found:
            yield Rejected(line, str(listing), quarantine.BAD_ENTRY)
            continue
        text, name = found.groups()
        audio = root / f"{name}.wav"
        if not audio.exists():
            yield Rejected(name, str(audio), quarantine.NO_AUDIO)
            continue
        source = f"{root.name}/{name}"
        licence = defaults.licence
        yield SourceUtterance(
            name, audio, text, defaults.speaker, defaults.language, source, licence
        )


def jsonl(path: Path, defaults: Defaults) -> Listing:
    """A manifest of one JSON object a line.

    `audio` (a path, relative to the manifest's folder) is needed; `id`, `text`, `speaker`,
    `language`, `source`, `licence`, `start`, `end` and `duration` (seconds) are optional.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                entry = json.loads(line)
                audio = path.parent / entry["audio"]
                item = SourceUtterance(
                    id=str(entry.get("id") or _segment_id(entry)),
                    audio=audio,
                    text=entry.get("text"),
                    speaker=str(entry.get("speaker", defaults.speaker)),
                    language=str(entry.get("language", defaults.language)),
                    source=str(entry.get("source", entry["audio"])),
                    licence=str(entry.get("licence", defaults.licence)),
                    start=_seconds(entry.get("start")),
                    end=_seconds(entry.get("end")),
                    seconds=_seconds(entry.get("duration")),
                )
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                yield Rejected(place, str(path), quarantine.BAD_ENTRY, repr(error))
                continue
            yield item if audio.exists() else Rejected(item.id, str(audio), quarantine.NO_AUDIO)


def _segment_id(entry: dict[str, object]) -> str:
    audio = str(entry["audio"])
    return f"{audio}@{entry['start']}" if entry.get("start") is not None else audio


def _seconds(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def folder(root: Path, defaults: Defaults) -> Listing:
    """Any folder of audio; `x.txt` beside `x.wav` is its transcript, subfolders name speakers."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder", "give the folder that holds the audio files")
    for audio in sorted(root.rglob("*")):
        if audio.suffix.lower() not in AUDIO_SUFFIXES or not audio.is_file():
            continue
        name = audio.relative_to(root)
        beside = audio.with_suffix(".txt")
        text = " ".join(beside.read_text("utf-8").split()) if beside.exists() else None
        speaker = name.parts[0] if len(name.parts) > 1 else defaults.speaker
        yield SourceUtterance(
            str(name), audio, text, speaker, defaults.language, str(name), defaults.licence
        )


READERS: dict[str, Callable[[Path, Defaults], Listing]] = {
    "asterisk": asterisk,
    "librispeech": librispeech,
    "libritts": libritts,
    "ljspeech": ljspeech,
    "sphinx": sphinx,
    "jsonl": jsonl,
    "folder": folder,
}
