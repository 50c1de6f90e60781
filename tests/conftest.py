"""Every test runs on eight simulated CPU devices and shares one cache of compiled programs."""

import gc
import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that a red run means a change in the code; `pytest
# --hypothesis-profile=explore` draws new ones.
settings.register_profile("stable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("stable")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NO_TORCH_COMPILE", "1")  # moshi's, which would start a pool of compilers
flags = {"xla_force_host_platform_device_count": 8}
# An XLA that does not know a flag ends the process. Programs for TPUs and GPUs are compiled as
# users do it.
compilers = ("libtpu", "jax_cuda13_plugin")
if version("jaxlib").startswith("0.10.") and not any(map(find_spec, compilers)):
    # What a test compiles runs for a second or two: a program that is compiled in an eighth of the
    # time and runs at half the speed ends sooner.
    flags |= {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": "true",
        "xla_cpu_use_fusion_emitters": "false",
        "xla_cpu_parallel_codegen_split_count": 1,
    }
given = os.environ.get("XLA_FLAGS", "")
more = [f"--{name}={value}" for name, value in flags.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *more]).strip()
compiled = Path(tempfile.gettempdir()) / f"slm_jax_test_programs_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
# The workers, the processes that tests start, and tests alike have most programs in common.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With -n and no --dist, a worker that has nothing left takes half of what another has.

    Of two workers, xdist would else give the first one an eighth of all, the slowest, for good.
    """
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_collection_finish():
    """Takes what imports left, hundreds of thousands of objects, out of every later collection.

    Tracing makes objects by the thousand that live for a while: a young generation of 700, Python's
    default, is looked through far too often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
