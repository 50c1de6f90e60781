"""Every test runs on eight simulated CPU devices and shares one cache of compiled programs."""

import os
import tempfile
from pathlib import Path

from hypothesis import settings

# The same examples every time, so that a red run means a change in the code; `pytest
# --hypothesis-profile=explore` draws new ones.
settings.register_profile("stable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("stable")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NO_TORCH_COMPILE", "1")  # moshi's, which would start a pool of compilers
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
compiled = Path(tempfile.gettempdir()) / f"slm_jax_test_programs_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
