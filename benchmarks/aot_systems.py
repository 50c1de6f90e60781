"""The smallest TPU slice that each system of gin/systems fits on, into tests/golden/aot/systems.

python benchmarks/aot_systems.py [NAME ...]

Systems that have a file there already are left out; a system takes minutes. Needs slm_jax[tpu].
"""

from __future__ import annotations

import subprocess
import sys

from slm_jax import config
from slm_jax.models.cross_decoder import CrossDecoderConfig
from slm_jax.paths import REPO

RESULTS = REPO / "tests/golden/aot/systems"
WITH_TASTE = {"taste"}  # whose sizes are those of a text LLM: tests/golden/aot/pairs


def flags(name: str) -> list[str]:
    """Of launch/plan.py, but for the file that it writes."""
    files = ["pretrain.gin", f"systems/{name}.gin", "parallel/fsdp.gin"]
    model = config.load(files).system.model
    found = ["--aot", *(f"--gin_file={file}" for file in files)]
    if model.depth is not None:
        found.append("--gin.DepthConfig.remat=full")
    if model.second is not None and isinstance(model.second.trunk, CrossDecoderConfig):
        found += ["--gin.CrossDecoderConfig.remat=full", "--gin.CrossDecoderConfig.dtype=bfloat16"]
    return found


def main() -> None:
    """Entry point."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    shipped = sorted(path.stem for path in (config.GIN_DIR / "systems").glob("*.gin"))
    for name in sys.argv[1:] or [name for name in shipped if name not in WITH_TASTE]:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            command = [sys.executable, "launch/plan.py", *flags(name), f"--json={path}"]
            subprocess.run(command, cwd=REPO)


if __name__ == "__main__":
    main()
