"""The smallest TPU slice that each system of gin/systems fits on, into tests/golden/aot/systems.

python benchmarks/aot_systems.py [NAME ...]

Without names, those that have no file there, the smallest first. The table of docs/planning.md is
written anew after each. A system takes minutes; needs slm_jax[tpu].
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from slm_jax import config
from slm_jax.models.cross_decoder import CrossDecoderConfig
from slm_jax.paths import REPO
from slm_jax.planning import accelerators
from slm_jax.training.chips import GIB

RESULTS = REPO / "tests/golden/aot/systems"
PAGE = REPO / "docs/planning.md"
WITH_TASTE = {"taste"}  # whose sizes are those of a text LLM: tests/golden/aot/pairs
HEADER = "| system | slice | peak HBM a chip | of the chip's |\n|---|---|---|---|\n"


def files(name: str) -> list[str]:
    """Of a system's job."""
    return ["pretrain.gin", f"systems/{name}.gin", "parallel/fsdp.gin"]


def flags(name: str) -> list[str]:
    """Of launch/plan.py, but for the file that it writes."""
    model = config.load(files(name)).system.model
    found = ["--aot", *(f"--gin_file={file}" for file in files(name))]
    if model.depth is not None:
        found.append("--gin.DepthConfig.remat=full")
    if model.second is not None and isinstance(model.second.trunk, CrossDecoderConfig):
        found += ["--gin.CrossDecoderConfig.remat=full", "--gin.CrossDecoderConfig.dtype=bfloat16"]
    return found


def missing() -> list[str]:
    """Systems without a result, by the size of the backbone."""
    shipped = {path.stem for path in (config.GIN_DIR / "systems").glob("*.gin")} - WITH_TASTE
    names = sorted(shipped - {path.stem for path in RESULTS.glob("*.json")})
    sizes = {name: config.load(files(name)).system.model.backbone for name in names}
    return sorted(names, key=lambda name: sizes[name].layers * sizes[name].width ** 2)


def table() -> str:
    """The results in Markdown, the smallest slice first."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        slice_, peak, limit = found["accelerator"], found["peak"], found["limit"]
        memory = accelerators.parse(slice_).chips * limit
        line = f"| {path.stem} | {slice_} | {peak / GIB:.2f} GiB | {peak / limit:.0%} |\n"
        rows.append((memory, line))
    return HEADER + "".join(line for _, line in sorted(rows))


def main() -> None:
    """Entry point."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or missing():
        command = [sys.executable, "launch/plan.py", *flags(name)]
        subprocess.run([*command, f"--json={RESULTS / name}.json"], cwd=REPO)
        page = PAGE.read_text(encoding="utf-8")
        before = re.search(re.escape(HEADER) + r"(\|.*\n)*", page)
        PAGE.write_text(page.replace(before[0], table()), encoding="utf-8")


if __name__ == "__main__":
    main()
