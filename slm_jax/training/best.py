"""Keeps the checkpoint with the least held-out loss beside the newest ones, and finds it again."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.training.progress import speech_loss

NAME = "best"  # RUN/best stands for that checkpoint
HELD_OUT = "held_out"  # what a checkpoint's metadata call its losses


def preservation(keep: int, loss: str) -> Any:
    """Orbax's policy that keeps the newest `keep` checkpoints and, if `loss` names one, the best.

    One that was not measured when it was saved is kept as long as it is new.
    """
    policies = ocp.training.preservation_policies
    newest = policies.LatestN(keep)
    if not loss:
        return newest
    least = policies.BestN(
        get_metric_fn=lambda losses: _value(losses, loss),
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return policies.AnyPreservationPolicy([newest, least])


def scores(losses: Mapping[str, float], coefficients: Mapping[str, float]) -> dict[str, float]:
    """Held-out losses, and what is made of several: "speech", their mean over the levels, and
    "total", the objective."""
    found = dict(losses)
    if (speech := speech_loss(losses)) is not None:
        found["speech"] = speech
    counted = [count * losses[name] for name, count in coefficients.items() if name in losses]
    return found | {"total": sum(counted)}


def check(loss: str, names: Collection[str]) -> None:
    """Raises a UserError if a model with losses of these `names` has no such `scores`."""
    known = scores(dict.fromkeys(names, 0.0), {})
    if loss and loss not in known:
        raise UserError(
            f"Checkpoints.best = {loss!r} is no held-out loss of this job",
            f"take one of {', '.join(sorted(known))}",
        )


def choose(run: Path, found: Mapping[Path, Mapping[str, Any]]) -> Path:
    """The best of the checkpoints of a run; of several, the newest.

    Args:
      run: its directory.
      found: folder -> metadata of each checkpoint, the newest last.

    Raises:
      UserError: the run keeps none, or has measured none yet.
    """
    loss = config.loads(list(found.values())[-1]["config"]).checkpoints.best if found else ""
    measured = {
        folder: value
        for folder, about in reversed(found.items())  # of equals the newest, as it is kept
        if (value := _value(about.get(HELD_OUT, {}), loss)) < math.inf
    }
    if not measured:
        raise UserError(
            f"{run} has no best checkpoint",
            f"Give {run} for the newest; to keep the best, train with Checkpoints.best = 'text' or "
            "another held-out loss.",
        )
    return min(measured, key=measured.__getitem__)


def _value(losses: Mapping[str, float], loss: str) -> float:
    """What checkpoints are compared by; one without that loss, or where it is nan, is no best."""
    value = losses.get(loss, math.inf)
    return math.inf if math.isnan(value) else value
