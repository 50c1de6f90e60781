"""Batches made ahead of their use by threads, and a watch over what the threads read.

The threads are this module's own because they must be ones that the process can end without: an
executor's, grain's among them, are joined at exit, and a read that hangs would keep the process.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from typing import TypeVar

import jax

from slm_jax.errors import UserError

T = TypeVar("T")
_JOIN = 2.0  # seconds for threads to end what they are at


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a process reads its data.

    Attributes:
      threads: that make batches.
      ahead: batches that are made before they are asked for.
      warn: seconds of waiting for a batch after which stderr says what is being read, and again
        after as many more.
      stop: seconds of waiting after which the run stops.
    """

    threads: int = 2
    ahead: int = 4
    warn: float = 30.0
    stop: float = 600.0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.ahead < 0:
            raise ValueError(f"ahead must not be negative, got {self.ahead}")
        if not 0 < self.warn <= self.stop:
            raise ValueError(
                f"warn must be above 0 and at most stop, got {self.warn} and {self.stop}"
            )


def ahead(
    make: Callable[[int], T],
    numbers: Iterable[int],
    reading: Reading,
    source: Callable[[int], str],
) -> Generator[T]:
    """`make(n)` for each n of `numbers`, in their order, made ahead by threads.

    Args:
      make: a batch by its number; called in other threads.
      numbers: of the batches, without end if need be.
      reading: how many threads and batches, and how long to wait.
      source: what is being read for the batch of that number, for messages.

    Raises:
      UserError: a batch took longer than `reading.stop`; names the host and the source.
      Exception: whatever `make` raised, with a note of the source.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(todo, make, source), daemon=True)
        for _ in range(reading.threads)
    ]
    for thread in threads:
        thread.start()
    pending: collections.deque[tuple[int, futures.Future]] = collections.deque()
    try:
        for number in numbers:
            pending.append((number, futures.Future()))
            todo.put(pending[-1])
            if len(pending) > reading.ahead:
                yield _wait(*pending.popleft(), reading, source)
        while pending:
            yield _wait(*pending.popleft(), reading, source)
    finally:
        for _, future in pending:
            future.cancel()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join(_JOIN)


def _work(todo: queue.SimpleQueue, make: Callable[[int], T], source: Callable[[int], str]) -> None:
    while (task := todo.get()) is not None:
        number, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(make(number))
        except BaseException as error:
            error.add_note(f"while making batch {number} from {source(number)}")
            future.set_exception(error)


def _wait(number: int, future: futures.Future, reading: Reading, source: Callable[[int], str]) -> T:
    began = time.monotonic()
    until = reading.warn
    while not futures.wait([future], min(until, reading.stop) + began - time.monotonic()).done:
        waited = time.monotonic() - began
        state = f"{host()} has waited {waited:.0f} s for batch {number}, now at {source(number)}"
        if waited >= reading.stop:
            raise UserError(
                state,
                "see whether that file can be read there, and run the same command again; where "
                "storage is only slow, raise Reading.stop.",
            )
        print(state, file=sys.stderr, flush=True)
        until += reading.warn
    return future.result()


def host() -> str:
    """This host, and which of several processes this is, for messages."""
    name = socket.gethostname()
    if jax.process_count() == 1:
        return name
    return f"{name} (process {jax.process_index()} of {jax.process_count()})"
