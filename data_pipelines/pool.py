"""A supervised pool of spawned workers that survives the death of any of them.

A unit is a fixed piece of work whose result is published atomically, so running it twice does no
harm. Workers announce each file before they touch it; when a worker dies (a decoder that crashes,
the out-of-memory killer), that file gets a death in the *crash ledger* and the unit is run again.
A file with two deaths is banned: the unit leaves it out and goes on. The ledger is on disk, so that
deaths of the whole process tree count too. `multiprocessing.Pool` hangs for ever on a dead worker.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

from slm_jax.errors import UserError

ATTEMPTS = 2  # deaths that ban a file
UNIT_ATTEMPTS = 3  # deaths of a unit outside any file that stop the run


class Guard:
    """A worker's side of the crash ledger: call `enter` before each file."""

    def __init__(self, marker: Path, banned: frozenset[str]):
        self._marker = marker
        self._banned = banned

    def enter(self, item: str) -> bool:
        """Announces `item`; False if it killed workers before and must not be touched."""
        if item in self._banned:
            return False
        self._marker.write_text(item, encoding="utf-8")
        return True

    def leave(self) -> None:
        """The unit ends in an orderly way: nothing is in flight."""
        self._marker.unlink(missing_ok=True)


Work: TypeAlias = Callable[[Any, Guard], Any]


class Ledger:
    """Deaths per file, kept in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / "deaths.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._deaths: collections.Counter[str] = collections.Counter()
        if self._file.exists():
            for line in self._file.read_text("utf-8").splitlines():
                self._deaths[json.loads(line)] += 1
        for left in folder.glob("*.inflight"):  # of a process tree that was killed as a whole
            self.record_death(left.stem)

    @property
    def banned(self) -> frozenset[str]:
        """Files that killed `ATTEMPTS` workers."""
        return frozenset(item for item, count in self._deaths.items() if count >= ATTEMPTS)

    def marker(self, unit: str) -> Path:
        """The file that names what is in flight in `unit`."""
        return self.folder / f"{unit}.inflight"

    def record_death(self, unit: str) -> str | None:
        """Books the death of the worker of `unit` on the file in flight, which is returned."""
        marker = self.marker(unit)
        item = marker.read_text("utf-8") if marker.exists() else ""
        marker.unlink(missing_ok=True)
        if not item:
            return None
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(item) + "\n")
        self._deaths[item] += 1
        return item


@dataclasses.dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    unit: str


def run(
    work: Work, units: Mapping[str, Any], ledger_folder: Path, workers: int
) -> Iterator[tuple[str, Any]]:
    """Runs `work(payload, guard)` for each unit in spawned processes.

    Args:
      work: function of an importable module, not of the script; publishes its output atomically
        and returns a picklable result.
      units: name (usable as a file name) -> picklable payload.
      ledger_folder: where the crash ledger lives; the same for every run of this job.
      workers: how many processes at most.

    Yields:
      (unit, result) as they finish.

    Raises:
      UserError: raised by `work`, or a unit died repeatedly with no file in flight.
      RuntimeError: any other exception of `work`, with its traceback.
    """
    ledger = Ledger(ledger_folder)
    context = multiprocessing.get_context("spawn")
    pending = collections.deque(units)
    deaths: collections.Counter[str] = collections.Counter()
    alive: dict[Connection, _Worker] = {}

    def assign(worker: _Worker) -> None:
        worker.unit = pending.popleft()
        alive[worker.pipe] = worker
        marker = ledger.marker(worker.unit)
        worker.pipe.send((units[worker.unit], marker, ledger.banned))

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(work, theirs), daemon=True)
        with _no_main():
            process.start()
        theirs.close()  # so that the worker's death is seen as the end of the pipe
        return _Worker(process, ours, "")

    try:
        while pending or alive:
            while pending and len(alive) < workers:
                assign(start())
            for pipe in wait(list(alive)):
                worker = alive.pop(pipe)  # type: ignore[index]
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    item = ledger.record_death(worker.unit)
                    deaths[worker.unit] += item is None
                    if deaths[worker.unit] >= UNIT_ATTEMPTS:
                        raise UserError(
                            f"a worker died {UNIT_ATTEMPTS} times in {worker.unit} (exit code "
                            f"{worker.process.exitcode}), with no file in flight",
                            "check that the machine has memory and disk space left, then run the "
                            "same command again; it continues where it stopped",
                        ) from None
                    pending.appendleft(worker.unit)
                    continue
                if kind != "done":
                    raise value
                done = worker.unit
                if pending:
                    assign(worker)
                else:
                    _stop(worker)
                yield done, value
    finally:
        for worker in alive.values():
            _stop(worker)
            ledger.marker(worker.unit).unlink(missing_ok=True)  # stopped by us, no death


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """A spawned process runs the caller's script again to have its names, and all it imports.

    Workers need the module of their work alone, so they are shown an empty script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join()


def _worker(work: Work, pipe: Connection) -> None:
    """Runs units until the parent closes the pipe (or dies, which closes it too)."""
    while True:
        try:
            payload, marker, banned = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        guard = Guard(marker, banned)
        try:
            answer: tuple[str, Any] = ("done", work(payload, guard))
        except UserError as error:
            answer = ("failed", error)
        except KeyboardInterrupt:
            return
        except Exception:
            answer = ("failed", RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))
        finally:
            guard.leave()
        try:
            pipe.send(answer)
        except OSError:  # the parent is gone
            return
