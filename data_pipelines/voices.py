"""Synthetic voices behind one interface: Piper, Kokoro and Flite.

    piper                        the fetched voice "joe"; or a folder or .onnx file of your own
    kokoro:jf_alpha              one of Kokoro's voices
    kokoro:jf_alpha+jm_kumo      a blend, with weights drawn for each sentence
    flite:slt                    one of Flite's voices

They make data: nothing in slm_jax imports them, or what they are made of (piper-tts is GPL-3.0).
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines import fetch, kokoro
from slm_jax.audio import decode
from slm_jax.audio.resample import resample
from slm_jax.data.schema import AUDIO_RATE
from slm_jax.errors import UserError

FLITE_VOICES = ("awb", "kal16", "rms", "slt")


class Voice(Protocol):
    """Something that reads sentences aloud.

    Attributes:
      speaker: who is heard.
      licence: of the voice, and so of what it says.
      source: engine and speaker, "ENGINE:SPEAKER".
    """

    speaker: str
    licence: str
    source: str

    def speak(self, text: str, rate: float, rng: random.Random) -> np.ndarray:
        """Reads one sentence.

        Args:
          text: an English sentence.
          rate: how many times as long as normal speech it shall last.
          rng: for the choices that a voice makes for each sentence.

        Returns:
          float32 [n], mono, 16 kHz, at the engine's own level.

        Raises:
          UserError: the engine makes no sound of this text.
        """
        ...


def open_voice(name: str) -> Voice:
    """Opens a voice, fetching it if it is missing.

    Args:
      name: "piper", a folder or .onnx file of a Piper voice, "kokoro:NAME", "kokoro:A+B+C" (a
        blend) or "flite:NAME".

    Raises:
      UserError: there is no such engine or voice, or it is not installed.
    """
    engine, _, speaker = name.partition(":")
    if name == "piper":
        return Piper("piper_voice")
    if engine == "kokoro":
        names = speaker.split("+")
        for part in names:
            _check(part, kokoro.VOICES, name)
        return kokoro.Kokoro(names)
    if engine == "flite":
        _check(speaker, FLITE_VOICES, name)
        return Flite(speaker)
    if Path(name).expanduser().exists():
        return Piper(name)
    raise UserError(
        f"there is no voice {name!r}",
        f"give piper, a Piper voice's folder or .onnx file, kokoro:NAME with NAME of "
        f"{', '.join(kokoro.VOICES)} (or several, A+B), or flite:NAME with NAME of "
        f"{', '.join(FLITE_VOICES)}",
    )


def _check(speaker: str, known: tuple[str, ...], name: str) -> None:
    if speaker not in known:
        raise UserError(
            f"there is no voice {speaker!r} (in {name!r})", f"choose from {', '.join(known)}"
        )


class Piper:
    """A Piper voice (VITS). It draws its noise itself, so that no two runs sound the same.

    Args:
      voice: an asset, or a folder or .onnx file with its .onnx.json.
    """

    def __init__(self, voice: str):
        path = _onnx_file(fetch.locate(voice))
        self.speaker = path.stem
        self.source = f"piper:{self.speaker}"
        self.licence = fetch.licence(voice)
        self._piper = _load_piper(path)

    def speak(self, text: str, rate: float, rng: random.Random) -> np.ndarray:
        from piper import SynthesisConfig

        chunks = list(self._piper.synthesize(text, SynthesisConfig(length_scale=rate)))
        if not chunks:
            raise UserError(f"Piper makes no sound of {text!r}", "remove that line")
        audio = np.concatenate([chunk.audio_float_array for chunk in chunks])
        return resample(audio.astype(np.float32), chunks[0].sample_rate, AUDIO_RATE)


def _onnx_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.onnx"))
    if not found:
        raise UserError(f"{path} holds no Piper voice", "give a folder with NAME.onnx")
    return found[0]


def _load_piper(path: Path) -> Any:
    try:
        from piper import PiperVoice
    except ImportError as error:
        raise UserError("Piper is not installed", "pip install 'slm_jax[synthesis]'") from error
    return PiperVoice.load(path)


class Flite:
    """A voice of Flite (CMU), clustergen; Debian's program, run from the cache.

    Args:
      speaker: of FLITE_VOICES.
    """

    def __init__(self, speaker: str):
        self.speaker = speaker
        self.source = f"flite:{speaker}"
        self.licence = fetch.licence("flite")
        self._folder = fetch.locate("flite")

    def speak(self, text: str, rate: float, rng: random.Random) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "spoken.wav"
            self._run(
                "-voice",
                f"cmu_us_{self.speaker}",
                "--setf",
                f"duration_stretch={rate}",
                "-t",
                text,
                "-o",
                str(wav),
            )
            return decode.load(wav, AUDIO_RATE)

    def _run(self, *arguments: str) -> None:
        program, libraries = self._folder / "bin" / "flite", self._folder / "lib"
        path = os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
        try:
            subprocess.run(
                [str(program), *arguments],
                env=os.environ | {"LD_LIBRARY_PATH": path},
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            raise UserError(
                f"Flite does not run here: {str(detail).strip()}",
                "install what it lacks (the sound library libasound2, as a rule), or choose a "
                "voice of another engine",
            ) from error
