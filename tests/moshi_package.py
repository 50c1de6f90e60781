"""The package moshi, importable.

Its requirements want an older torch than ours, though it runs on this one, so that pip cannot
install both: the wheel is unpacked beside the other downloads.
"""

import fcntl
import sys
import zipfile

from data_pipelines import fetch
from slm_jax.paths import cache_dir

WHEEL = "moshi==0.2.13"


def make_importable():
    """Downloads the wheel once and puts it on the path."""
    folder = cache_dir() / "tests" / WHEEL.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may ask at once
        if not (folder / "moshi").exists():
            [wheel] = fetch.pip_download((WHEEL,), folder.parent)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
