"""What one checkpoint's directory holds, read with Orbax; its errors say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import disk, inventory

DAMAGED = "If the checkpoint is damaged, move its directory away: an older one serves instead."


def about(folder: Path) -> dict[str, Any]:
    """What `Store.save` was given as `about`."""
    found = metadata(folder).custom_metadata or {}
    if "config" not in found:
        raise UserError(
            f"{folder} is no checkpoint of launch/train.py: it holds no config",
            f"Give the directory of a run of launch/train.py. {DAMAGED}",
        )
    return found


def params(folder: Path) -> tree.Params:
    """Shapes and dtypes of the parameters saved."""
    found = metadata(folder).metadata.get("params")
    if found is None:
        raise UserError(f"{folder} has no readable parameters", DAMAGED)
    return found


def metadata(folder: Path) -> Any:
    """Orbax's metadata of the checkpoint, none of whose files has lost bytes."""
    if lost := inventory.damage(folder):
        raise UserError(f"{folder} is damaged: {lost}", "Take an older checkpoint of the run.")
    try:
        return ocp.checkpointables_metadata(folder)
    except Exception as error:
        raise UserError(
            f"{folder} is no readable checkpoint ({disk.first_line(error)})", DAMAGED
        ) from error


def load(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The arrays of `wanted`, {part: tree of ShapeDtypeStructs with shardings}."""
    try:
        return ocp.load_checkpointables(folder, wanted)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise UserError(
            f"{folder} cannot be restored into this job ({disk.first_line(error)})",
            DAMAGED,
        ) from error


def check_same_optimizer(folder: Path, wanted: dict[str, Any]) -> None:
    """Raises a UserError if an optimizer with other settings saved what is beside the parameters.

    Args:
      folder: of the checkpoint.
      wanted: "opt" and, for a run that keeps an average, "ema" -> trees of ShapeDtypeStructs.
    """
    found = metadata(folder).metadata
    for part, expected in wanted.items():
        saved, ours = _shapes(found.get(part)), _shapes(expected)
        differ = sorted(path for path in saved | ours if saved.get(path) != ours.get(path))
        if differ:
            raise UserError(
                f"{folder} is of another optimizer: {len(differ)} arrays beside the weights "
                f"differ, the first is {part}/{differ[0]}",
                "Restore Optimizer.kind, b1, groups, ema and skip as in config.gin of the run, or "
                "train under another name.",
            )


def _shapes(part: Any) -> dict[str, tuple[int, ...]]:
    """By path, which a tuple with names and the dict that Orbax makes of it have in common."""
    leaves = jax.tree_util.tree_leaves_with_path(part)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def check_same_model(folder: Path, abstract: tree.Params) -> None:
    """Raises a UserError that names each parameter saved that is not as in `abstract`."""
    saved, wanted = tree.flatten(params(folder)), tree.flatten(abstract)
    problems = {
        "missing": [name for name in wanted if name not in saved],
        "unexpected": [name for name in saved if name not in wanted],
        "misshapen": [
            f"{name} {tuple(saved[name].shape)}, wanted {tuple(wanted[name].shape)}"
            for name in wanted
            if name in saved and tuple(saved[name].shape) != tuple(wanted[name].shape)
        ],
    }
    try:
        tree.check_names(**problems)
    except UserError as error:
        raise UserError(
            f"{folder} is a checkpoint of another model: {error.message}",
            "Train under another name, or with the model settings of the run's config.gin.",
        ) from None
