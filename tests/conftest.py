"""Every test runs on eight simulated CPU devices and shares one cache of compiled programs."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
compiled = Path(tempfile.gettempdir()) / f"slm_jax_test_programs_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
