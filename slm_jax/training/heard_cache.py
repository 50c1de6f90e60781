"""Features of utterances on disk: a run that goes on need not listen to its corpus again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from slm_jax.tokenizers.taste_listen import Heard
from slm_jax.tokenizers.taste_text import Symbols
from slm_jax.training.taste_examples import Example


def remembered(
    folder: Path,
    about: str,
    audios: Sequence[np.ndarray],
    words: Sequence[Sequence[Any]],
    make: Callable[[Sequence[np.ndarray], Sequence[Sequence[Any]]], list[Example]],
) -> list[Example]:
    """`make(audios, words)`, or what it gave for the same input before.

    Args:
      folder: of the files, one a call.
      about: whatever else `make` depends on.
      audios, words: of the utterances.
    """
    digest = hashlib.sha256(about.encode())
    for audio, spoken in zip(audios, words, strict=True):
        digest.update(np.ascontiguousarray(audio))
        digest.update(repr([(w.text, w.start, w.end) for w in spoken]).encode())
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    if path.exists():
        return _unflat(load_file(path))
    examples = make(audios, words)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(_flat(examples), unfinished)
    os.replace(unfinished, path)
    return examples


def _flat(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    flat = {"count": np.array([len(examples)])}
    for i, e in enumerate(examples):
        fields = e.heard._asdict() | {"audio": e.audio, "count": np.array([e.words])}
        fields |= {"ids": fields["text"].ids, "owners": fields.pop("text").words}
        flat |= {f"{i}/{name}": np.ascontiguousarray(array) for name, array in fields.items()}
    return flat


def _unflat(flat: dict[str, np.ndarray]) -> list[Example]:
    examples = []
    for i in range(int(flat["count"][0])):
        field = {name: flat[f"{i}/{name}"] for name in Heard._fields if name != "text"}
        text = Symbols(flat[f"{i}/ids"], flat[f"{i}/owners"])
        words = int(flat[f"{i}/count"][0])
        examples.append(Example(Heard(text=text, **field), words, flat[f"{i}/audio"]))
    return examples
