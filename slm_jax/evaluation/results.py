"""RUN/eval.json: what was measured on a run, by section, for people, the report and CI."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_jax.errors import UserError

FILE = "eval.json"


def save(run_dir: str | Path, section: str, values: dict[str, Any]) -> Path:
    """Writes one section; the other sections stay. The file appears whole or not at all."""
    path = Path(run_dir) / FILE
    results = load(run_dir) | {section: values}
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def load(run_dir: str | Path) -> dict[str, Any]:
    """All sections, {} when nothing was measured yet.

    Raises:
      UserError: the file is not JSON.
    """
    path = Path(run_dir) / FILE
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "delete it and evaluate again") from error


def set_beside(run_dir: str | Path, others: Sequence[str | Path]) -> Path:
    """Puts the language-model figures of other runs beside a run's own, as section "variants".

    Raises:
      UserError: one of the runs has no such figures, or they were measured by another protocol or
        on other codes.
    """
    own, *others_figures = [_figures(folder) for folder in (run_dir, *others)]
    for folder, found in zip(others, others_figures, strict=True):
        if _measured_on(found) != _measured_on(own):
            raise UserError(
                f"{folder} was measured on other held-out codes or otherwise than {run_dir}",
                "evaluate both with one version of slm_jax, on one dataset",
            )
    names = [os.path.relpath(folder, Path(run_dir).parent) for folder in others]  # no two alike
    return save(run_dir, "variants", dict(zip(names, others_figures, strict=True)))


def _figures(run_dir: str | Path) -> dict[str, Any]:
    found = load(run_dir).get("language_model")
    if found is None:
        remedy = f"python launch/evaluate.py --run={run_dir}"
        raise UserError(f"{run_dir} has no held-out figures in {FILE}", remedy)
    return found


def _measured_on(figures: dict[str, Any]) -> list[Any]:
    baselines = [(level["n"], level["unigram"]) for level in figures["speech"]]
    return [figures["protocol"], figures["utterances"], baselines]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into {FILE}")
