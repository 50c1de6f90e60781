"""Saves and restores the training state with Orbax's v1 API.

RUN/checkpoints/<step>/ holds three parts: "params", "opt", and custom metadata (the resolved
config as gin text and the position in the data). A step directory appears by one rename after its
last byte, so a crash or a full disk leaves the older ones as they were. <step> counts finished
updates. Decoding and export read "params" and the config alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.nn import tree

DIRECTORY = "checkpoints"
DISK_FULL = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota exceeded", "File too large")
DAMAGED = "If the checkpoint is damaged, delete its directory: the one before it serves instead."


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and how many to keep.

    Attributes:
      every: steps between two saves; the last step and a preemption save in any case.
      keep: the newest this many stay, older ones are removed after the next has been written.
    """

    every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Loaded(NamedTuple):
    """What `load_params` returns.

    Attributes:
      params: nested dict of arrays.
      job: the `slm_jax.training.job.TrainJob` that trained them.
      step: updates done.
      streams: family -> fingerprint of each stream that they were trained on.
    """

    params: tree.Params
    job: Any
    step: int
    streams: dict[str, str]


class Store:
    """The checkpoints of one run; a context manager, whose end waits for the last save."""

    def __init__(self, run_dir: Path, settings: Checkpoints):
        self.directory = run_dir.resolve() / DIRECTORY
        self.settings = settings
        self._pending: Any = None
        training = ocp.training
        self._orbax = training.Checkpointer(
            self.directory,
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                settings.every
            ),
            preservation_policy=training.preservation_policies.LatestN(settings.keep),
            cleanup_tmp_directories=True,  # what a killed process left half written
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:
                kind = UserError
                raise
        finally:
            # After an error the first one is the one to show; Orbax raises a failed save again.
            with contextlib.suppress(*([Exception] if kind else [])):
                self._orbax.close()

    @property
    def latest(self) -> int | None:
        """The newest step saved completely."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, state: dict[str, Any], step: int, about: dict[str, Any], force: bool = False):
        """Starts to save when `step` is due or `force` is set; copies first, writes behind.

        Args:
          state: {"params", "opt", "step"}; may be donated as soon as this returns.
          step: finished updates.
          about: JSON values to read back with `restore`: "config" (gin text) and the data position.
          force: save whether due or not; a step that is there already is left.

        Raises:
          UserError: this or the previous save found the disk full.
        """
        if not (force or step % self.settings.every == 0) or step == self.latest:
            return
        self.wait()
        self._check_space(state)
        parts = {"params": state["params"], "opt": {"state": state["opt"], "step": state["step"]}}
        with _disk_errors(self.directory):
            self._pending = self._orbax.save_checkpointables_async(
                step, parts, force=True, custom_metadata=about
            )

    def wait(self) -> None:
        """Returns when the save under way is on disk.

        Raises:
          UserError: it found the disk full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _disk_errors(self.directory):
                pending.result()

    def about(self, step: int) -> dict[str, Any]:
        """What `save` was given as `about` at that step."""
        return _about(self.directory / str(step))

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The newest state, in the shardings of `abstract`, whatever mesh saved it.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings.

        Raises:
          UserError: the checkpoint is damaged, or of another model (every weight that differs is
            named).
        """
        folder = self.directory / str(self.latest)
        _check_same_model(folder, abstract["params"])
        wanted = {
            "params": abstract["params"],
            "opt": {"state": abstract["opt"], "step": abstract["step"]},
        }
        loaded = _load(folder, wanted)
        opt = loaded["opt"]
        return {"params": loaded["params"], "opt": opt["state"], "step": opt["step"]}

    def _check_space(self, state: dict[str, Any]) -> None:
        shards = (s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards)
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise _disk_full(self.directory, f"{needed / 1e9:.2f} GB wanted, {free / 1e9:.2f} free")


def load_params(path: str | Path, abstract: tree.Params | None = None) -> Loaded:
    """The parameters and the job of a checkpoint, for decoding, evaluation and export.

    Args:
      path: a run directory, its checkpoints directory, or one step's directory.
      abstract: the parameters as ShapeDtypeStructs with shardings; None puts every array whole
        on the first local device.

    Raises:
      UserError: no checkpoint there, not one of ours, or one of another model than `abstract`.
    """
    folder = find_step(Path(path))
    saved = _saved_params(folder)
    if abstract is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved
        )
    _check_same_model(folder, abstract)
    about = _about(folder)
    job = config.loads(about["config"], name=f"{folder}: config")
    params = _load(folder, {"params": abstract})["params"]
    return Loaded(params, job, int(folder.name), about.get("streams", {}))


def find_step(path: Path) -> Path:
    """The step directory meant by a run, checkpoints or step directory: the newest in it."""
    for folder in (path / DIRECTORY, path):
        steps = [int(child.name) for child in folder.glob("[0-9]*") if child.name.isdigit()]
        if steps:
            return (folder / str(max(steps))).resolve()
    if path.name.isdigit() and path.is_dir():
        return path.resolve()
    raise UserError(
        f"no checkpoint in {path}",
        "Give a run directory (runs/NAME), its checkpoints directory, or one step of it; "
        "a run saves its first checkpoint after Checkpoints.every steps.",
    )


def _about(folder: Path) -> dict[str, Any]:
    about = _metadata(folder).custom_metadata or {}
    if "config" not in about:
        raise UserError(
            f"{folder} is no checkpoint of launch/train.py: it holds no config",
            "Give the directory of a run of launch/train.py.",
        )
    return about


def _saved_params(folder: Path) -> tree.Params:
    params = _metadata(folder).metadata.get("params")
    if params is None:
        raise UserError(f"{folder} has no readable parameters", DAMAGED)
    return params


def _metadata(folder: Path) -> Any:
    try:
        return ocp.checkpointables_metadata(folder)
    except Exception as error:
        raise UserError(
            f"{folder} is no readable checkpoint ({_first_line(error)})", DAMAGED
        ) from error


def _load(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        return ocp.load_checkpointables(folder, wanted)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise UserError(
            f"{folder} cannot be restored into this job ({_first_line(error)})",
            f"If the optimizer has changed, train under another name. {DAMAGED}",
        ) from error


def _check_same_model(folder: Path, abstract: tree.Params) -> None:
    saved, wanted = tree.flatten(_saved_params(folder)), tree.flatten(abstract)
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


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turns the several exceptions of a full disk into one UserError."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if full or any(text in str(cause) for text in DISK_FULL):
                raise _disk_full(directory, _first_line(cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _disk_full(directory: Path, detail: str) -> UserError:
    return UserError(
        f"no room to save a checkpoint in {directory} ({detail}); the older ones are intact",
        "Free space there and run the same command again: it continues from the newest checkpoint.",
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
