"""Keeps what a step stumbled over, to be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from slm_jax.data.loader import Loader


def save(
    run_dir: Path, loader: Loader, rows: np.ndarray, step: int, losses: Mapping[str, float]
) -> Path:
    """Writes RUN/bad_batch_<step>_of_process_<number>, .npz the arrays, .json where they come from.

    The state that met the batch is that of the newest checkpoint, trained on to `step` - 1.

    Args:
      run_dir: RUN.
      loader, rows: of the training data, and the rows that this process made.
      step: the update that failed; the first is 1.
      losses: of that step.

    Returns:
      The path of the arrays.
    """
    path = run_dir / f"bad_batch_{step}_of_process_{jax.process_index()}.npz"
    np.savez_compressed(path, **loader.batch(step - 1, rows))
    about = {
        "step": step,
        "losses": {name: repr(value) for name, value in losses.items()},  # JSON has no nan
        "rows": loader.origin(step - 1, rows),
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return path
