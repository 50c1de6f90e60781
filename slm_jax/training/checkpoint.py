"""Saves and restores the training state with Orbax's v1 API.

RUN/checkpoints/<step>/ holds three parts: "params", "opt", and custom metadata (the resolved
config as gin text and the position in the data). A step directory appears by one rename after its
last byte, so a crash or a full disk leaves the older ones as they were; a damaged one is set aside
(`slm_jax.training.inventory`). <step> counts finished updates. Decoding and export read "params"
and the config alone. A run that keeps an average of its weights has it as a fourth part, "ema",
which they read, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from slm_jax import config
from slm_jax.data.ahead import host
from slm_jax.errors import UserError
from slm_jax.nn import tree
from slm_jax.training import best, disk, distributed, inventory, step_folder
from slm_jax.training.distributed import is_main
from slm_jax.training.state import averaged

DIRECTORY = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and how many to keep.

    Attributes:
      every: steps between two saves; the last step and a preemption save in any case.
      keep: the newest this many stay, older ones are removed after the next has been written.
      best: a held-out loss ("text", "speech", "total", or another of the eval lines); that with the
        least of it stays, too, and is found as RUN/best. Empty for none.
    """

    every: int = 100
    keep: int = 2
    best: str = ""

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
    """The checkpoints of one run; a context manager, whose end waits for the last save.

    Damaged checkpoints that are newer than the newest whole one are set aside first.

    Raises:
      UserError: the processes see different checkpoints.
    """

    def __init__(self, run_dir: Path, settings: Checkpoints):
        self.directory = run_dir.resolve() / DIRECTORY
        self.settings = settings
        self._pending: Future | None = None
        self._failed = False
        self._behind = ThreadPoolExecutor(1, "checkpoint")
        if is_main():
            inventory.set_aside([self.directory / str(step) for step in steps_in(self.directory)])
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints looked through")
        training = ocp.training
        self._orbax = training.Checkpointer(
            self.directory,
            context=_context(),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                settings.every
            ),
            preservation_policy=best.preservation(settings.keep, settings.best),
            cleanup_tmp_directories=True,  # what a killed process left half written
        )
        if jax.process_count() > 1:
            newest = multihost_utils.process_allgather(np.int32(self.latest or 0)).tolist()
            if len(set(newest)) > 1:
                raise UserError(
                    f"the processes find checkpoints of different steps in {self.directory}: "
                    f"{', '.join(map(str, newest))}",
                    "Put TrainJob.runs on storage that all hosts share.",
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
            if self._failed and jax.process_count() > 1:
                # All are here; the parts that wait for one that failed would wait for minutes.
                jax.distributed.shutdown()
            # After an error the first one is the one to show; Orbax raises a failed save again.
            with contextlib.suppress(*([Exception] if kind else [])):
                self._orbax.close()
            self._behind.shutdown()

    @property
    def latest(self) -> int | None:
        """The newest step saved completely."""
        return self._orbax.latest.step if self._orbax.latest else None

    def due(self, step: int) -> bool:
        """Whether the state after so many updates is to be saved."""
        return step % self.settings.every == 0

    def save(
        self,
        state: dict[str, Any],
        step: int,
        about: dict[str, Any],
        force: bool = False,
        held_out: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save when `step` is due or `force` is set; copies first, writes behind.

        Args:
          state: {"params", "opt", "step"}; may be donated as soon as this returns.
          step: finished updates.
          about: JSON values to read back with `restore`: "config" (gin text) and the data position.
          force: save whether due or not; a step that is there already is left.
          held_out: losses of this state, where it was measured.

        Raises:
          UserError: this or the previous save found the disk full, here or on another host.
        """
        if not (force or self.due(step)) or step == self.latest:
            return
        self.wait()
        disk.check_space(self.directory, state)
        about = about | ({best.HELD_OUT: held_out} if held_out else {})
        parts = {"params": state["params"], "opt": {"state": state["opt"], "step": state["step"]}}
        parts |= _average(state)
        with disk.errors(self.directory):
            saving = self._orbax.save_checkpointables_async(
                step, parts, force=True, metrics=held_out, custom_metadata=about
            )
        self._pending = self._behind.submit(self._complete, saving, step)

    def wait(self) -> None:
        """Returns when the save under way is on disk.

        Raises:
          UserError: it found the disk full, here or on another host.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self._failed = True
            with disk.errors(self.directory):
                distributed.result(pending)
            self._failed = False

    def about(self, step: int) -> dict[str, Any]:
        """What `save` was given as `about` at that step."""
        return step_folder.about(self.directory / str(step))

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """The newest state, in the shardings of `abstract`, whatever mesh saved it.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings.

        Raises:
          UserError: the checkpoint is damaged, or of another model (every weight that differs is
            named) or optimizer.
        """
        folder = self.directory / str(self.latest)
        step_folder.check_same_model(folder, abstract["params"])
        others = {"opt": {"state": abstract["opt"], "step": abstract["step"]}} | _average(abstract)
        step_folder.check_same_optimizer(folder, others)
        loaded = step_folder.load(folder, {"params": abstract["params"], **others})
        opt = loaded["opt"]
        state = {"params": loaded["params"], "opt": opt["state"], "step": opt["step"]}
        return state | _average(loaded)

    def _complete(self, saving: Any, step: int) -> None:
        try:
            saving.result()
            if is_main():
                inventory.write(self.directory / str(step))
        except Exception as error:
            _say(error)
            raise
        distributed.barrier(f"slm_jax/checkpoint {step} is complete")


def _context() -> ocp.Context:
    """Orbax's settings, with `_barrier`, for which its v1 has no field."""
    context = ocp.Context()
    options = dataclasses.replace(context.asynchronous.v0(), barrier_sync_fn=_barrier)
    context.asynchronous.v0 = lambda: options
    return context


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Orbax comes here at the end of a save that has failed, too, where the others will not be."""
    if error := sys.exc_info()[1]:
        _say(error)
    else:
        distributed.barrier(key, timeout_ms)


def _say(error: BaseException) -> None:
    distributed.failed(f"{host()}: {type(error).__name__}: {error}")


def load_params(
    path: str | Path, abstract: tree.Params | None = None, average: bool = True
) -> Loaded:
    """The parameters and the job of a checkpoint, for decoding, evaluation and export.

    Args:
      path: a run directory, its checkpoints directory, or one step's directory.
      abstract: the parameters as ShapeDtypeStructs with shardings; None puts every array whole
        on the first local device.
      average: takes the average of the weights where the run kept one (`Optimizer.ema`).

    Raises:
      UserError: no checkpoint there, not one of ours, or one of another model than `abstract`.
    """
    folder = find_step(Path(path))
    saved = step_folder.params(folder)
    if abstract is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved
        )
    step_folder.check_same_model(folder, abstract)
    about = step_folder.about(folder)
    job = config.loads(about["config"], name=f"{folder}: config")
    flat = tree.flatten(abstract)
    wanted = {"params": abstract}
    if average and (kept := step_folder.metadata(folder).metadata.get("ema")):
        wanted["ema"] = tree.unflatten({name: flat[name] for name in tree.flatten(kept)})
    params = averaged(step_folder.load(folder, wanted))
    return Loaded(params, job, int(folder.name), about.get("streams", {}))


def _average(state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state that is there where the run keeps an average of its weights."""
    return {"ema": state["ema"]} if "ema" in state else {}


def find_step(path: Path) -> Path:
    """The step directory meant by a run, checkpoints or step directory: the newest in it.

    RUN/best means that with the least held-out loss (`Checkpoints.best`).
    """
    if path.name == best.NAME and not path.exists():
        folder = path.parent / DIRECTORY
        found = [(folder / str(step)).resolve() for step in steps_in(folder)]
        return best.choose(path.parent, {one: step_folder.about(one) for one in found})
    for folder in (path / DIRECTORY, path):
        if steps := steps_in(folder):
            return (folder / str(steps[-1])).resolve()
    if path.name.isdigit() and path.is_dir():
        return path.resolve()
    raise UserError(
        f"no checkpoint in {path}",
        "Give a run directory (runs/NAME), its checkpoints directory, or one step of it; "
        "a run saves its first checkpoint after Checkpoints.every steps.",
    )


def steps_in(folder: Path) -> list[int]:
    """The steps saved completely in a checkpoints directory, ascending."""
    return sorted(int(child.name) for child in folder.glob("[0-9]*") if child.name.isdigit())
