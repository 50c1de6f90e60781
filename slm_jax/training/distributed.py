"""Processes that train together, and how all of them stop at one step when told to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from concurrent import futures
from types import FrameType
from typing import Any, NoReturn

import jax
from jax._src import distributed as service
from jax.experimental import multihost_utils

from slm_jax.errors import UserError

PREEMPTED = 143  # exit status after SIGTERM, 128 + 15: schedulers start such a job again
# host:port of process 0; how many there are; which one this is.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# After so many seconds without a sign of life of one process, or after the end of one that the
# others do not follow, JAX ends them all and names it: they would wait in a collective for ever.
SILENCE = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 60}
# What processes write to each other, in the store of JAX's coordination service.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # JAX's own: one of them has had a SIGTERM
STOP = "slm_jax/stops before the first step"
FAILED = "slm_jax/failed"
POLL = 1.0  # seconds between two looks at these


def initialize() -> None:
    """Joins the other processes of the job; call it before anything touches a device.

    JAX finds their number and process 0 by itself on Cloud TPU, on GKE with TPUs, and where Slurm
    (srun) or Open MPI start them. Anywhere else set all of `VARIABLES`. Without any of these this
    is the only process.

    Raises:
      UserError: only some of `VARIABLES` are set, and no cluster says the rest.
    """
    given = [name for name in VARIABLES if name in os.environ]
    told: dict[str, Any] = {}
    if len(given) == len(VARIABLES):
        told = {
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**told, **SILENCE)
    except ValueError as error:
        if told or "defined" not in str(error):  # its way to say that it found no cluster
            raise
        if given:
            raise UserError(
                f"{', '.join(given)} is set, but there is no cluster to say the rest",
                f"set all of {', '.join(VARIABLES)}, or none to run one process.",
            ) from None
    if _alone_on_host():  # JAX gives each process of Slurm or Open MPI one GPU of the host
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")
    if jax.process_count() > 1:
        # All connect now, while they are together: collectives wait 30 s for the last to connect,
        # and after compiling for minutes the slowest host may be further behind than that.
        multihost_utils.sync_global_devices("joined")


def _alone_on_host() -> bool:
    """Whether Slurm or Open MPI started one process on each host."""
    tasks, nodes = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_STEP_NUM_NODES")
    slurm = tasks is not None and tasks == nodes
    return slurm or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def barrier(key: str, timeout_ms: int = 24 * 3600 * 1000) -> None:
    """Waits until all processes are at the place of that name, which is for one time.

    No device takes part, so that threads behind the loop can wait, too.

    Raises:
      JaxRuntimeError: a process has died, or was not here in time.
    """
    if jax.process_count() > 1:
        service.global_state.client.wait_at_barrier(key, timeout_ms)


def result(future: futures.Future) -> Any:
    """What a future gives that needs all processes, unless one says that it has `failed`.

    Raises:
      RuntimeError: with what it said.
    """
    if jax.process_count() > 1:
        while not futures.wait([future], POLL).done:
            if problem := _posted(FAILED):
                raise RuntimeError(problem)
    return future.result()


def failed(problem: str) -> None:
    """Has the others that wait for a `result`, now or later, raise with the first such problem."""
    if client := service.global_state.client:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was the first
            client.key_value_set(FAILED, problem)


def _posted(key: str) -> str | None:
    try:
        return service.global_state.client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError:  # nobody has
        return None


def is_main() -> bool:
    """Whether this process writes what only one may: logs, config, reports."""
    return jax.process_index() == 0


class Preemption:
    """Turns SIGTERM into a question that the loop asks between two pieces of its work.

    Before the first question there is nothing to lose: a lone process then ends at once with status
    PREEMPTED, even while XLA compiles; of several, all do until the last of them has compiled
    (`compile`). After that JAX's preemption service, which catches the signal on whichever host
    gets it, agrees with all on the question to stop at. What compiles later delays an answer, so
    that whatever the loop runs is to be given to `compile`.
    """

    def __enter__(self) -> Preemption:
        self._questions, self._told, self._heard = 0, False, False
        self._alone = jax.process_count() == 1
        if self._alone:
            # Python's own handlers wait for XLA to return; a byte in this pipe does not.
            self._bell, ringer = socket.socketpair()
            ringer.setblocking(False)
            self._ringer, self._old_bell = ringer, signal.set_wakeup_fd(ringer.fileno())
            self._old_handler = signal.signal(signal.SIGTERM, self._on_signal)
        else:
            self._ready, self._all_ready = threading.Lock(), threading.Event()
        listen = self._listen if self._alone else self._listen_to_all
        threading.Thread(target=listen, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._old_handler)
            signal.set_wakeup_fd(self._old_bell)
            self._ringer.close()  # which ends the thread
            if self._told and not self._heard:  # it came after the last question
                signal.raise_signal(signal.SIGTERM)
        else:
            self._all_ready.set()

    def compile(self, *programs: tuple[Any, ...]) -> None:
        """Compiles programs before the first question, and returns when all processes have.

        Otherwise the first to be ready would wait for the others in its first collective, where
        Gloo waits 30 s for them.

        Args:
          programs: a jitted function and its arguments each.
        """
        for function, *args in programs:
            function.lower(*args).compile()  # which a call with such arguments finds
        if not self._alone:
            self._ready.acquire()  # for good: from here on this process does not stop by itself
            barrier("slm_jax/compiled")
            self._all_ready.set()

    def stop(self) -> bool:
        """Whether to save and stop now; every process must ask equally often."""
        self._questions += 1
        if self._alone:
            self._heard = self._told
            return self._told
        return multihost_utils.reached_preemption_sync_point(self._questions)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._told = True

    def _listen(self) -> None:
        with self._bell:
            while number := self._bell.recv(1):
                if number[0] == signal.SIGTERM and not self._questions:
                    _leave()

    def _listen_to_all(self) -> None:
        """Until all have compiled: one that has not need not, and then none can go on."""
        while not self._all_ready.wait(POLL):
            if _posted(NOTICE) and self._ready.acquire(blocking=False):
                service.global_state.client.key_value_set(STOP, "1", allow_overwrite=True)
                _leave()
            if _posted(STOP):
                _leave()


def _leave() -> NoReturn:
    """Ends the process, whatever its other threads do; of several, all at one time."""
    print("stopped by SIGTERM before a step was done: nothing is lost", flush=True)
    if jax.process_count() > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            service.global_state.client.wait_at_barrier("slm_jax/left", 10_000)
        if is_main():  # who serves the others: let them hear that all are here
            time.sleep(1)
    os._exit(PREEMPTED)
