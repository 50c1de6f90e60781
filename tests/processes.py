"""Starts launch/train.py as a user does, watches its log, and stops it in several ways."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from slm_jax.paths import REPO
from slm_jax.training import metrics
from slm_jax.training.distributed import VARIABLES

WITHOUT_TORCH = Path(__file__).parent / "without_torch"


def start(gin_file, tmp_path, *flags, devices=1, **env):
    """launch/train.py on `gin_file` in a process of its own, over so many CPU devices."""
    return subprocess.Popen(
        [sys.executable, str(REPO / "launch" / "train.py"), f"--gin_file={gin_file}", *flags],
        cwd=tmp_path,
        env=on_devices(devices) | as_users_have(tmp_path) | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def as_users_have(tmp_path, *first):
    """The environment with a cache of assets in `tmp_path`, and no PyTorch; modules in the folders
    `first` come before all others."""
    given = filter(None, [os.environ.get("PYTHONPATH")])
    path = os.pathsep.join(map(str, [*first, WITHOUT_TORCH, *given]))
    return {"SLM_JAX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": path}


def start_two(gin_file, tmp_path, *flags, devices=1, **env):
    """The same as two processes of so many devices each, which find each other."""
    return [start(gin_file, tmp_path, *flags, devices=devices, **own | env) for own in together(2)]


def start_scripts(code, count, devices, *args):
    """`code` as so many processes of so many CPU devices each, which find each other."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=REPO,
            env=on_devices(devices) | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in together(count)
    ]


def on_devices(count):
    """The environment with so many CPU devices, and otherwise the compiler flags of these tests."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def together(count):
    """What the environment says to each of so many processes that are to find each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        dict(zip(VARIABLES, (address, str(count), str(index)), strict=True))
        for index in range(count)
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
