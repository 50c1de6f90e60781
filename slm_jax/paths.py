"""Where things live on disk."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Downloads, datasets and compiled programs: $SLM_JAX_CACHE, else ~/.cache/slm_jax."""
    root = os.environ.get("SLM_JAX_CACHE")
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slm_jax"
    path = Path(root).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path
