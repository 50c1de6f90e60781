"""Starts launch/train.py as a user does, watches its log, and stops it in several ways."""

import os
import socket
import subprocess
import sys
import time

from slm_jax.paths import REPO
from slm_jax.training import metrics


def start(gin_file, tmp_path, *flags, devices=1, **env):
    """launch/train.py on `gin_file` in a process of its own, over so many CPU devices."""
    flags_of_xla = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    )
    return subprocess.Popen(
        [sys.executable, str(REPO / "launch" / "train.py"), f"--gin_file={gin_file}", *flags],
        cwd=tmp_path,
        env=os.environ
        | {"SLM_JAX_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": flags_of_xla}
        | {"JAX_PLATFORMS": "cpu"}
        | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(gin_file, tmp_path, *flags, devices=1, **env):
    """The same as two processes of so many devices each, which find each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
    env["JAX_NUM_PROCESSES"] = "2"
    return [
        start(gin_file, tmp_path, *flags, devices=devices, JAX_PROCESS_ID=str(index), **env)
        for index in range(2)
    ]


def finish(process, code=0):
    """Its output, once it has ended with status `code`."""
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def losses(run_dir):
    """step -> losses of the train lines of a run."""
    path = run_dir / metrics.FILE
    lines = metrics.read(path) if path.exists() else []
    return {line["step"]: line["losses"] for line in lines if line["split"] == "train"}


def wait_for(process, run_dir, step):
    """Returns when the run has logged `step`."""
    while max(losses(run_dir), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
