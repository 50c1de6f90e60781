"""Processes that train together, and how all of them stop at one step when told to."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

PREEMPTED = 143  # exit status after SIGTERM, 128 + 15: schedulers start such a job again


def initialize() -> None:
    """Joins the other processes of the job; call it before anything touches a device.

    JAX finds them by itself on Cloud TPU, Slurm (srun), Open MPI and Kubernetes. Anywhere else,
    set JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Without any of these this is the only process.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ and "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    else:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):  # its way to say that it found no cluster
                raise
    if jax.process_count() > 1:
        # All connect now, while they are together: collectives wait 30 s for the last to connect,
        # and after compiling for minutes the slowest host may be further behind than that.
        multihost_utils.sync_global_devices("joined")


def is_main() -> bool:
    """Whether this process writes what only one may: logs, config, reports."""
    return jax.process_index() == 0


class Preemption:
    """Turns SIGTERM into a question that the loop asks every step.

    With several processes JAX's preemption service catches the signal on whichever host gets it,
    and agrees with all others on the step to stop at.
    """

    def __enter__(self) -> Preemption:
        self._told = False
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def stop_at(self, step: int) -> bool:
        """Whether to save and stop now; every process must ask at every step, in order."""
        if jax.process_count() == 1:
            return self._told
        return multihost_utils.reached_preemption_sync_point(step)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._told = True
