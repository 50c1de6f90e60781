"""Debian packages without root: download through apt's own client, unpack in Python.

`apt-get` keeps its lists and cache in a private folder, so that neither root nor a filled system
list is needed. A `.deb` is a Unix `ar` archive (deb(5)) whose member data.tar.* holds the files.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from slm_jax.errors import UserError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
LISTS_FRESH_SECONDS = 24 * 3600


def download(packages: tuple[str, ...], into: Path, state: Path) -> list[Path]:
    """Downloads Debian packages into a folder by `apt-get download`.

    Args:
      packages: package names.
      into: existing folder that receives the .deb files.
      state: folder for apt's lists and cache, private to this project.

    Returns:
      The .deb files, in the order of `packages`.

    Raises:
      UserError: there is no apt-get here, or it could not get a package.
    """
    names = ", ".join(packages)
    if shutil.which("apt-get") is None:
        raise UserError(
            f"the Debian package(s) {names} cannot be fetched: this machine has no apt-get",
            "download the .deb elsewhere and put it into the folder that "
            "`python -m data_pipelines.fetch --packages` prints, or give a folder of audio by path",
        )
    options = _options(state)
    lists = state / "lists"
    stamp = state / "updated"
    if not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_FRESH_SECONDS:
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        print(f"fetch: apt-get update, with its lists in {lists}", file=sys.stderr)
        update = _apt([*options, "update"], into)
        if update.returncode == 0:
            stamp.touch()
    result = _apt([*options, "download", *packages], into)
    files = [next(iter(sorted(into.glob(f"{package}_*.deb"))), None) for package in packages]
    if result.returncode != 0 or None in files:
        raise UserError(
            f"apt-get could not download {names}: {result.stderr.strip()[-500:]}",
            "check the network and the apt sources of this machine and run the command again, "
            "or put the .deb into the folder that `python -m data_pipelines.fetch --packages` "
            "prints",
        )
    return [file for file in files if file is not None]


def _options(state: Path) -> list[str]:
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",  # no switch to _apt, which cannot write the user's cache
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _apt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", "-q", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the members of a Unix `ar` archive.

    Raises:
      UserError: not an ar archive, or it ends early.
    """
    data = path.read_bytes()
    if not data.startswith(AR_MAGIC):
        raise UserError(f"{path} is not a Debian package", "delete it and fetch it again")
    at = len(AR_MAGIC)
    while at + AR_HEADER <= len(data):
        header = data[at : at + AR_HEADER]
        size_field = header[48:58].strip()
        if header[58:60] != b"`\n" or not size_field.isdigit():
            raise UserError(
                f"{path} is damaged at byte {at}", "delete it and fetch the package again"
            )
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(size_field)
        at += AR_HEADER
        if at + size > len(data):
            raise UserError(
                f"{path} is truncated in its member {name}", "delete it and fetch it again"
            )
        yield name, data[at : at + size]
        at += size + size % 2  # members start at even bytes


def unpack(deb: Path, into: Path, place: Callable[[str], str | None]) -> int:
    """Unpacks chosen regular files of a .deb.

    Args:
      deb: the package file.
      into: folder to write below.
      place: path inside the package (no leading "./") -> path below `into`, or None to skip.

    Returns:
      How many files were written.
    """
    written = 0
    try:
        with _data_tar(deb) as tar:
            for member in tar:
                target = place(member.name.removeprefix("./")) if member.isfile() else None
                content = tar.extractfile(member) if target else None
                if target is not None and content is not None:
                    path = _inside(into, target, deb)
                    _write(content, path)
                    path.chmod(0o644 | member.mode & 0o111)  # programs stay programs
                    written += 1
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{deb} is damaged: {error}", "delete it and fetch it again") from error
    return written


def _inside(folder: Path, name: str, deb: Path) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{deb} holds the path {name}, outside its folder", "delete this package")
    return path


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(content, file)


def _data_tar(deb: Path) -> tarfile.TarFile:
    for name, content in ar_members(deb):
        if not name.startswith("data.tar"):
            continue
        if name.endswith(".zst"):  # no zstd in this Python's library; dpkg-deb comes with apt
            if shutil.which("dpkg-deb") is None:
                raise UserError(f"{deb} is compressed with zstd", "install dpkg-deb")
            content = subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True
            ).stdout
        return tarfile.open(fileobj=io.BytesIO(content))
    raise UserError(f"{deb} has no data.tar member", "delete it and fetch the package again")
