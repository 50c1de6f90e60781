"""Prints the JobSet that runs launch/train.py on GKE.

python launch/gke.py --name=taste --image=IMAGE --volume=CLAIM --accelerator=v5e-256 \
  --gin_file=taste_pretrain.gin --gin_file=parallel/fsdp.gin --gin.FSDP=16 | kubectl apply -f -

IMAGE holds the repository (launch/gke/Dockerfile). CLAIM is a PersistentVolumeClaim that all pods
may write; it is mounted at /shared, with the cache in /shared/cache and the runs in /shared/runs.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from slm_jax.errors import UserError, run_main
from slm_jax.planning import accelerators

TEMPLATES = Path(__file__).with_name("gke")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Prints a JobSet for GKE.", allow_abbrev=False)
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--image", required=True, help="container with the repository")
    add("--volume", required=True, help="PersistentVolumeClaim for cache and runs")
    add("--accelerator", required=True, help="v5e-256, v5p-128 (cores), h100-64, 2xv5e-256")
    add("--restarts", type=int, default=3, help="after failures; preemptions are not counted")
    args, flags = parser.parse_known_args(argv)
    print(
        jobset(args.name, args.image, args.volume, args.accelerator, args.restarts, flags), end=""
    )


def jobset(
    name: str, image: str, volume: str, accelerator: str, restarts: int, flags: Sequence[str]
) -> str:
    """The YAML text.

    Args:
      name, image, volume, restarts: as the flags of this program.
      accelerator: as `slm_jax.planning.accelerators.parse` reads it.
      flags: of launch/train.py.

    Raises:
      UserError: unknown accelerator, or a name that Kubernetes does not take.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"{name!r} names no JobSet", "take at most 40 of a-z, 0-9 and -, a letter first."
        )
    chosen = accelerators.parse(accelerator)
    tpu = bool(chosen.chip.dimensions)
    command = ["python", "launch/train.py", "--gin.TrainJob.runs=/shared/runs", *flags]
    template = Template((TEMPLATES / ("tpu.yaml" if tpu else "gpu.yaml")).read_text("utf-8"))
    return template.substitute(
        name=name,
        image=image,
        volume=volume,
        restarts=restarts,
        slices=chosen.slices,
        hosts=chosen.hosts,
        chips=min(chosen.chip.host, chosen.chips // chosen.slices),
        node=chosen.chip.node,
        topology=chosen.topology if tpu else "",
        command=json.dumps(command),
    )


if __name__ == "__main__":
    run_main(main)
