"""What to build: the configuration of speech and of text-only datasets (no heavy imports here)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from slm_jax.paths import cache_dir

Corpus = Literal["asterisk", "librispeech", "libritts", "ljspeech", "jsonl", "folder"]
Decoder = Literal["auto", "soundfile", "pyav", "tfio"]


@dataclasses.dataclass(frozen=True)
class DatasetBuildConfig:
    """A speech dataset with audio, words, text ids and TASTE tokens.

    The defaults are the embedded corpus: 25 minutes of real prompts, with their transcripts.

    Attributes:
      name: of the dataset; also its folder's when `out` is empty.
      out: the dataset's folder; empty for <cache>/datasets/<name>.
      corpus: how the corpus is laid out.
      path: its folder or JSONL file; empty for the prompts of `language`, fetched.
      language, speaker, licence: where the corpus itself says nothing.
      decoder: audio decoder.
      min_seconds, max_seconds: utterances outside are quarantined; Whisper sees 30 s.
      silence_db: dBFS that the loudest 50 ms must reach.
      asr: Whisper that aligns and transcribes: "whisper_tiny_en" (fetched) or a folder.
      text_tokenizer: that of the text LLM: "smollm2" (fetched) or the path of a GGUF file or a
        tokenizer.json.
      pronunciations: dictionary that TASTE reads by: "pronunciations" (fetched) or a file.
      taste: folder of TASTE weights, empty for the starter weights.
      families: what the dataset must have beside "words" and "audio": "text-<name>" for the ids of
        `text_tokenizer`, "taste", "speaker".
      records_per_shard: most records in one file.
      asr_batch_size: recordings that the ASR hears at once.
      workers: processes that decode; 0 for one a core.
      wer: whether to transcribe what has a transcript and report the word error rate too.
    """

    name: str = "prompts"
    out: str = ""
    corpus: Corpus = "asterisk"
    path: str = ""
    language: str = "en"
    speaker: str = ""
    licence: str = "unknown"
    decoder: Decoder = "auto"
    min_seconds: float = 0.25
    max_seconds: float = 30.0
    silence_db: float = -50.0
    asr: str = "whisper_tiny_en"
    text_tokenizer: str = "smollm2"
    pronunciations: str = "pronunciations"
    taste: str = ""
    families: tuple[str, ...] = ("text-smollm2", "taste", "speaker")
    records_per_shard: int = 10_000
    asr_batch_size: int = 8
    workers: int = 0
    wer: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        for family in self.families:
            if family not in ("taste", "speaker") and not family.startswith("text-"):
                raise ValueError(f"families: {family!r} is none of text-<name>, taste, speaker")
        if not 0 < self.min_seconds < self.max_seconds <= 30:
            raise ValueError("max_seconds must lie between min_seconds and 30")
        for field in ("records_per_shard", "asr_batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1")
        if self.workers < 0:
            raise ValueError("workers must be 0 (one a core) or more")
        if not self.path and self.corpus != "asterisk":
            raise ValueError(f"path must be given for a corpus of kind {self.corpus!r}")

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return _root(self.out, self.name)

    @property
    def parts(self) -> tuple[str, ...]:
        """All families."""
        return ("words", "audio", *self.families)


@dataclasses.dataclass(frozen=True)
class TextBuildConfig:
    """A text-only dataset, to be mixed in so that the LLM keeps its text ability.

    Attributes:
      name, out: as in `DatasetBuildConfig`.
      path: .txt file (paragraphs between blank lines), .jsonl file (key "text"), .html file, or a
        folder of such files; empty for the Debian FAQ, fetched.
      language, licence: of the text.
      text_tokenizer, families: as in `DatasetBuildConfig`; families of text ids only.
      max_words: longer paragraphs are cut at sentence ends into pieces of at most so many words.
      records_per_shard: most records in one file.
    """

    name: str = "text"
    out: str = ""
    path: str = ""
    language: str = "en"
    licence: str = "unknown"
    text_tokenizer: str = "smollm2"
    families: tuple[str, ...] = ("text-smollm2",)
    max_words: int = 64
    records_per_shard: int = 10_000

    def __post_init__(self) -> None:
        _check_name(self.name)
        for family in self.families:
            if not family.startswith("text-"):
                raise ValueError(f"families: {family!r} needs speech; text has text-<name> only")
        for field in ("max_words", "records_per_shard"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1")

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return _root(self.out, self.name)

    @property
    def parts(self) -> tuple[str, ...]:
        """All families."""
        return ("words", *self.families)


def _check_name(name: str) -> None:
    if not name or "/" in name or name.startswith("."):
        raise ValueError("name must not be empty, hold a slash or start with a dot")


def _root(out: str, name: str) -> Path:
    return Path(out).expanduser() if out else cache_dir() / "datasets" / name
