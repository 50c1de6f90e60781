"""What to build: the configuration of speech and of text-only datasets (no heavy imports here)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from slm_jax.paths import cache_dir

Corpus = Literal["asterisk", "librispeech", "libritts", "ljspeech", "sphinx", "jsonl", "folder"]
Decoder = Literal["auto", "soundfile", "pyav", "tfio"]
UNITS = "units"
MULAW = "mulaw"
# Kinds of families that tokenizers make from audio alone: those with starter weights, those with
# any, and all.
STARTERS = ("codec", UNITS, "latents")
WEIGHTED = (*STARTERS, "asr_units", "mimi", "encodec", "encodec_48khz", "dac", "snac")
SPEECH_KINDS = (*WEIGHTED, MULAW)


@dataclasses.dataclass(frozen=True)
class DatasetBuildConfig:
    """A speech dataset with audio, words, text ids and the tokens of several tokenizers.

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
        `text_tokenizer`, "taste", "speaker", "codec" (our codec), "units" (k-means units),
        "latents" (vectors of our codec before it quantises them), "mulaw-<rate>" (samples).
      tokenizers: further families with weights of your own, "FAMILY=DIR". A family is a kind, or
        a kind, "-" and a name: codec, latents (of a codec's folder), units (of
        data_pipelines.fit_units), asr_units (within `asr`), mimi, encodec, encodec_48khz, dac,
        snac; "codec=DIR" replaces the starter. Of a codec, "FAMILY=DIR@8" is the first 8 levels.
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
    families: tuple[str, ...] = ("text-smollm2", "taste", "speaker", "codec", "units")
    tokenizers: tuple[str, ...] = ()
    records_per_shard: int = 10_000
    asr_batch_size: int = 8
    workers: int = 0
    wer: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        for family in self.families:
            known = family in ("taste", "speaker", *STARTERS) or family.startswith("text-")
            if not known and not rate_of(family) and family not in self._folders:
                raise ValueError(
                    f"families: {family!r} is none of text-<name>, taste, speaker, codec, units, "
                    "latents, mulaw-<rate>; other tokenizers stand in `tokenizers`, with their "
                    "folders"
                )
        for given in self.tokenizers:
            family, folder = (*given.split("=", 1), "")[:2]
            if kind_of(family) not in WEIGHTED or not folder or "/" in family:
                raise ValueError(
                    f"tokenizers: {given!r} is not FAMILY=DIR with a family of "
                    f"{', '.join(WEIGHTED)}, or KIND-NAME"
                )
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
        return tuple(dict.fromkeys(("words", "audio", *self.families, *self._folders)))

    def folder(self, family: str) -> Path | None:
        """The weights of the tokenizer of a family; None for the starter's."""
        folder = self._folders.get(family)
        return Path(folder).expanduser() if folder else None

    @property
    def _folders(self) -> dict[str, str]:
        return dict(given.split("=", 1) for given in self.tokenizers if "=" in given)


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


def kind_of(family: str) -> str:
    """The kind of tokenizer that makes a family: "units" of "units-hubert"."""
    return family.partition("-")[0]


def rate_of(family: str) -> int:
    """The samples a second of a family "mulaw-<rate>"; 0 for any other."""
    kind, _, rate = family.partition("-")
    return int(rate) if kind == MULAW and rate.isdecimal() else 0


def _check_name(name: str) -> None:
    if not name or "/" in name or name.startswith("."):
        raise ValueError("name must not be empty, hold a slash or start with a dot")


def _root(out: str, name: str) -> Path:
    return Path(out).expanduser() if out else cache_dir() / "datasets" / name
