"""The losses of a model on the held-out data of its run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from slm_jax.data.loader import Loader
from slm_jax.nn import tree
from slm_jax.training import metrics, partitioning
from slm_jax.training.setup import Program


class HeldOut:
    """(params) -> {name: mean over the held-out data}.

    Args:
      program: the run.
      loader: of the split to measure on.
      reference: parameters of the KL's frozen LLM (`weights.reference`).
    """

    def __init__(self, program: Program, loader: Loader, reference: tree.Params):
        self._program, self._loader, self._reference = program, loader, reference
        self._rows: np.ndarray = partitioning.local_rows(program.mesh, program.job.batch_size)

    def __call__(
        self, params: tree.Params, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """None if `stop`, which is asked after every batch, says so."""
        program = self._program
        found: dict[str, Any] = {}
        with contextlib.closing(self._loader.one_pass(self._rows)) as batches:
            for batch in batches:
                placed = partitioning.put_batch(batch, program.mesh, program.job.batch_size)
                scores = program.evaluation(params, placed, self._reference)
                found = metrics.add(found, jax.device_get(scores))
                if stop():
                    return None
        return metrics.means(found)
