"""Runs launch/train.py as several processes on this machine, as on several hosts.

python launch/local.py --processes=2 --devices=4 --gin_file=taste_pretrain.gin \
  --gin_file=parallel/fsdp.gin --gin.BATCH_SIZE=8

Each process has its own simulated CPU devices: a rehearsal of what a pod does, with its failures.
SIGTERM and Ctrl-C are passed on, so that the run saves and ends with status 143. A process that
dies takes the others down, and its status is the launcher's (128 + the signal's number).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from slm_jax.paths import REPO

PREEMPTED = 128 + signal.SIGTERM  # that of slm_jax.training.distributed, without jax
GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Runs launch/train.py as several processes.", allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, default=1, help="simulated, of each process")
    args, flags = parser.parse_known_args(argv)
    if args.processes < 1 or args.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    raise SystemExit(Group(args.processes, args.devices, flags).run())


class Group:
    """Processes that live and die together.

    Args:
      count: how many.
      devices: CPU devices of each.
      flags: of launch/train.py.
    """

    def __init__(self, count: int, devices: int, flags: Sequence[str]):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        count_devices = f"--xla_force_host_platform_device_count={devices}"
        common = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count_devices}".strip(),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "PYTHONUNBUFFERED": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for index in range(count):
            process = subprocess.Popen(
                [sys.executable, str(REPO / "launch" / "train.py"), *flags],
                env=os.environ | common | {"JAX_PROCESS_ID": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # else Ctrl-C would reach it beside what is passed on
            )
            self._processes.append(process)

    def run(self) -> int:
        """Waits for all.

        Returns:
          The status of the first that failed; else `PREEMPTED` if they were stopped, or 0.
        """
        readers = [
            threading.Thread(target=self._show, args=(index,))
            for index in range(len(self._processes))
        ]
        for reader in readers:
            reader.start()
        failed = None
        alive = True
        while alive:
            alive = any(process.poll() is None for process in self._processes)
            if failed is None:
                failed = self._failed()
            time.sleep(0.05)
        for reader in readers:
            reader.join()
        return failed or max(process.returncode for process in self._processes)

    def _failed(self) -> int | None:
        """The status of a process that failed, after which none is left; None if none did.

        Where several did since the last look, it is one that was killed: others fail because of it.
        """
        codes = {index: process.returncode for index, process in enumerate(self._processes)}
        bad = {index: code for index, code in codes.items() if code not in (None, 0, PREEMPTED)}
        if not bad:
            return None
        index, code = min(bad.items(), key=lambda item: item[1])
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        _say(f"process {index} of {len(codes)} {how}; stopping the others")
        self._stop()
        return code if code > 0 else 128 - code

    def _stop(self) -> None:
        """Ends those that are left."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        _say(f"{signal.Signals(number).name}: telling all processes to save and stop")
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing to one that has ended

    def _show(self, index: int) -> None:
        """Copies what a process prints, line by line."""
        output = self._processes[index].stdout
        assert output is not None
        for line in output:
            print(f"[{index}] {line}", end="", flush=True)


def _say(message: str) -> None:
    print(f"launch/local.py: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
