"""tensorflow-io as a decoder, in a process and a Python environment of its own.

tensorflow-io's library loads beside TensorFlow 2.16-2.17 only, and these beside no current JAX,
so `tfio_worker.py` runs under a second interpreter and hands samples over a pipe. Resampling
stays with soxr: tensorflow-io's is 20-45 times slower and shifts the signal by 32 samples.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np

from slm_jax.audio import container
from slm_jax.audio.errors import AudioError
from slm_jax.errors import UserError

PYTHON_VARIABLE = "SLM_JAX_TFIO_PYTHON"
_WORKER = Path(__file__).with_name("tfio_worker.py")
_INSTALL = f"""create its environment, which needs Python 3.11, with these two commands:
    python3.11 -m venv ~/.venvs/tfio
    ~/.venvs/tfio/bin/pip install -r data_pipelines/requirements-tfio.txt
  then set {PYTHON_VARIABLE}=~/.venvs/tfio/bin/python"""


class TfioDecoder:
    """One long-living worker process; starts on the first file, again if a file killed it.

    Args:
      python_path: interpreter that has tensorflow-io; by default $SLM_JAX_TFIO_PYTHON.

    Raises:
      UserError: there is no such interpreter.
    """

    def __init__(self, python_path: str | os.PathLike | None = None):
        path = python_path or os.environ.get(PYTHON_VARIABLE)
        if not path:
            raise UserError("the tfio decoder's interpreter is not known", _INSTALL)
        self.python = Path(path).expanduser()
        if not os.access(self.python, os.X_OK):
            raise UserError(f"the tfio decoder's interpreter {self.python} is not there", _INSTALL)
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def decode(self, data: bytes, name: str = "audio") -> tuple[np.ndarray, int]:
        """Decodes WAV, FLAC, MP3 or Ogg Vorbis.

        Args:
          data: the bytes of a whole file.
          name: what to call it in errors.

        Returns:
          float32 [n, channels] and the file's rate in Hz.

        Raises:
          AudioError: tensorflow-io cannot decode it; the worker lives on.
          UserError: the interpreter has no working tensorflow-io.
        """
        _refuse_unsupported(data, name)
        with self._lock:
            process = self._running()
            try:
                return _exchange(process, data, name)
            except AudioError:
                raise
            except (EOFError, OSError) as error:
                code = self._stop()
                raise AudioError(
                    "unreadable", f"{name} made the tfio worker exit with status {code}"
                ) from error
            except BaseException:  # an interrupt: the pipe may hold half an answer
                self._stop()
                raise

    @property
    def process_id(self) -> int | None:
        """Of the running worker; None before the first file."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """Ends the worker; a later `decode` starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - the child holds it
        process = subprocess.Popen(
            [str(self.python), "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        greeting = process.stdout.readline()
        if not greeting:
            process.communicate()
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"{self.python} cannot run tensorflow-io: {''.join(last) or 'no message'}", _INSTALL
            )
        errors.close()
        self.versions = json.loads(greeting)
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        return process

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        self._finalizer()
        code, self._process = self._process.returncode, None
        return code


def shared(python_path: str | None = None) -> TfioDecoder:
    """The decoder of this process for that interpreter, started once."""
    # The process id is part of the key, since a forked child must not share its parent's pipes.
    return _shared(str(python_path or os.environ.get(PYTHON_VARIABLE, "")), os.getpid())


@functools.lru_cache
def _shared(python_path: str, _pid: int) -> TfioDecoder:
    return TfioDecoder(python_path)


def _refuse_unsupported(data: bytes, name: str) -> None:
    """What tensorflow-io fails on obscurely, or reads wrongly.

    It takes 32-bit integers for floats, and loses the last sample of mono 24-bit files.
    """
    kind = container.kind(data, name)
    what = {"opus": "Opus", "g722": "G.722"}.get(kind)
    if kind == "wav":
        header = container.wave_header(data)
        if header.tag == container.WAVE_PCM and header.bits in (24, 32):
            what = f"{header.bits}-bit integer WAV"
    if what:
        raise AudioError(
            "unsupported",
            f"tensorflow-io cannot decode {what}, which {name} is",
            'use decoder="auto", which reads WAV, FLAC, MP3, Ogg Vorbis, Opus and G.722',
        )


def _exchange(process: subprocess.Popen, data: bytes, name: str) -> tuple[np.ndarray, int]:
    process.stdin.write(struct.pack("<Q", len(data)))
    process.stdin.write(data)
    process.stdin.flush()
    (failed,) = _receive(process, "<B")
    if failed:
        (size,) = _receive(process, "<Q")
        message = _read_exactly(process, size).decode(errors="replace")
        raise AudioError("unreadable", f"tensorflow-io cannot decode {name}: {message}")
    rate, channels, frames = _receive(process, "<IIQ")
    samples = np.frombuffer(_read_exactly(process, frames * channels * 4), "<f4")
    return samples.reshape(frames, channels), rate


def _receive(process: subprocess.Popen, layout: str) -> tuple:
    return struct.unpack(layout, _read_exactly(process, struct.calcsize(layout)))


def _read_exactly(process: subprocess.Popen, size: int) -> bytes:
    data = process.stdout.read(size)
    if len(data) < size:
        raise EOFError("the tfio worker closed its pipe")
    return data


def _end(process: subprocess.Popen) -> None:
    """The worker holds nothing worth a farewell, and TensorFlow's takes seconds."""
    with contextlib.suppress(OSError):  # the pipe breaks if the worker is gone already
        process.stdin.close()
    process.kill()
    process.wait()
    process.stdout.close()
