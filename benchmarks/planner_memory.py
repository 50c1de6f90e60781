"""The planner's memory beside the compiler's, for every result in tests/golden/aot.

python benchmarks/planner_memory.py

Prints a line for each as it is counted, and writes the table of docs/planning.md anew. Needs no
compiler.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from slm_jax import config
from slm_jax.paths import REPO
from slm_jax.planning import accelerators, aot, memory
from slm_jax.training.chips import GIB
from slm_jax.training.job import TrainJob

RESULTS = REPO / "tests/golden/aot"
PAGE = REPO / "docs/planning.md"
SIZED = runpy.run_path(str(REPO / "launch/plan.py"))["sized"]
MARKS = "<!-- planner_memory.py -->\n", "<!-- end of planner_memory.py -->\n"
HEADER = (
    "| job | on | state and batch, GiB | temporary, GiB | in all, of the compiler's |\n"
    "|---|---|---|---|---|\n"
)


class Pair(NamedTuple):
    """What the planner says and what the compiler took, bytes on one device.

    Attributes:
      name, slice: of the job and the chips.
      state: parameters, optimizer, reference and batch.
      temporary: the rest.
      compiler_state, compiler_temporary: the same of the compiler.
    """

    name: str
    slice: str
    state: float
    temporary: float
    compiler_state: float
    compiler_temporary: float

    @property
    def ratio(self) -> float:
        """Planner by compiler, in all."""
        compiler = self.compiler_state + self.compiler_temporary
        return (self.state + self.temporary) / compiler

    def __str__(self) -> str:
        """A line of the table."""
        sizes = [
            f"{planner / GIB:.2f} / {compiler / GIB:.2f}"
            for planner, compiler in (
                (self.state, self.compiler_state),
                (self.temporary, self.compiler_temporary),
            )
        ]
        return f"| {self.name} | {self.slice} | {' | '.join(sizes)} | {self.ratio:.2f} |"


def job_of(found: dict[str, Any]) -> TrainJob:
    """The job that a result was compiled for, as it was spread over the chips."""
    flags = shlex.split(found["command"])
    files = [flag.partition("=")[2] for flag in flags if flag.startswith("--gin_file=")]
    bound = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
    job = SIZED(config.load(files, bound))
    if any(flag.startswith("--accelerator") for flag in flags):
        return job
    return aot.spread_over(job, found["chips"])


def compare(path: Path) -> Pair:
    """Counts what a result was compiled for."""
    found = json.loads(path.read_text(encoding="utf-8"))
    job, accelerator = job_of(found), accelerators.parse(found["accelerator"])
    told = memory.of(job, memory.mesh_of(job, accelerator))
    state = told.parameters + told.optimizer + told.reference + told.batch
    compiler = found["arguments"]
    return Pair(
        path.stem, found["accelerator"], state, told.total - state, compiler,
        found["peak"] - compiler,
    )  # fmt: skip


def summary(pairs: list[Pair]) -> str:
    """Median and extremes."""
    ranked = sorted(pairs, key=lambda pair: pair.ratio)
    low, high = ranked[0], ranked[-1]
    middle = statistics.median(pair.ratio for pair in ranked)
    return (
        f"{len(ranked)} results: median {middle:.2f}, lowest {low.ratio:.2f} ({low.name}), "
        f"highest {high.ratio:.2f} ({high.name})."
    )


def main() -> None:
    """Entry point."""
    pairs = []
    for path in sorted(RESULTS.glob("*/*.json"), key=lambda path: (path.parent.name, path.stem)):
        pairs.append(compare(path))
        print(pairs[-1], flush=True)
    print(summary(pairs))
    table = HEADER + "".join(f"{pair}\n" for pair in pairs) + f"\n{summary(pairs)}\n"
    before, after = MARKS
    page = PAGE.read_text(encoding="utf-8")
    written = re.sub(
        f"{re.escape(before)}.*?{re.escape(after)}", lambda _: before + table + after, page,
        flags=re.DOTALL,
    )  # fmt: skip
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
