"""What a run is made of, saved with its checkpoints and held against a later continuation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_jax import config
from slm_jax.data.registry import DatasetSpec
from slm_jax.errors import UserError
from slm_jax.streams import fingerprint
from slm_jax.training.checkpoint import Store
from slm_jax.training.job import TrainJob

CONFIG = "config.gin"


def describe(job: TrainJob) -> dict[str, Any]:
    """JSON values: "config" (gin text), "streams" (family: fingerprint), "data" (fingerprint).

    Raises:
      UserError: a dataset is missing or does not fit the layout.
    """
    streams: dict[str, str] = {}
    datasets = []
    for spec in job.data.datasets:
        opened = spec.open()
        families = [family for family in job.system.layout.families if family in spec.families]
        if len(families) == len(job.system.layout.families):
            job.system.layout.check(opened.specs)
        streams |= {family: opened.specs[family].fingerprint for family in families}
        datasets.append(_content(spec, families))
    return {"config": config.dump(job), "streams": streams, "data": fingerprint(datasets)}


def write_config(run_dir: Path, about: Mapping[str, Any]) -> None:
    """Leaves the resolved config in a run's directory, whole or not at all."""
    temporary = run_dir / f".{CONFIG}.tmp"
    temporary.write_text(about["config"], encoding="utf-8")
    os.replace(temporary, run_dir / CONFIG)


def check_continues(job: TrainJob, about: Mapping[str, Any], store: Store) -> None:
    """Raises a UserError if `job`, which `about` describes, is another run than that in `store`."""
    before = store.about(store.latest)
    job.check_continues(config.loads(before["config"], name=str(job.run_dir / CONFIG)))
    if before["data"] != about["data"]:
        raise UserError(
            f"the datasets of the run in {job.run_dir} have been made again since it began",
            "Train under another name, or put the datasets back that it was begun with.",
        )


def _content(spec: DatasetSpec, families: list[str]) -> str:
    return spec.open().split("train", families).fingerprint
