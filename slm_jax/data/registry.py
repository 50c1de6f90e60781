"""Datasets and mixtures by name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from slm_jax.data import dataset, manifest, schema
from slm_jax.errors import UserError
from slm_jax.paths import cache_dir


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A dataset that the project knows how to find and how to build.

    Attributes:
      name: in mixtures.
      path: folder, absolute or below `cache_dir()/datasets`.
      families: that it is made to have.
      command: the pipeline command that builds or completes it.
    """

    name: str
    path: str
    families: tuple[str, ...]
    command: str = ""

    @property
    def root(self) -> Path:
        return cache_dir() / "datasets" / Path(self.path).expanduser()

    @property
    def text_only(self) -> bool:
        """Whether there is no speech in it, so that it may lack a layout's speech streams."""
        return all(family == schema.WORDS or family.startswith("text-") for family in self.families)

    def open(self, families: Sequence[str] = (schema.WORDS,)) -> dataset.Dataset:
        """The dataset on disk.

        Raises:
          UserError: it is not there, or one of `families` has not been made yet; with `command`.
        """
        remedy = f"run: {self.command}" if self.command else manifest.PIPELINE
        opened = dataset.open_dataset(self.root, remedy)
        for family in families:
            if family not in opened.specs:
                message = f"dataset {self.root} has no family {family!r}, only "
                raise UserError(message + ", ".join(opened.specs), remedy)
        return opened


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
    """What a job trains on.

    Attributes:
      parts: (dataset, rate) pairs; a dataset is a registered name or the path of a folder. Rates
        are relative to their sum and count packed rows, hence tokens.
    """

    parts: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.parts or any(not 1e-6 <= rate < float("inf") for _, rate in self.parts):
            raise ValueError(f"parts must be (dataset, rate >= 1e-6) pairs, got {self.parts}")
        if len({name for name, _ in self.parts}) < len(self.parts):
            raise ValueError(f"parts names a dataset twice: {self.parts}")

    @property
    def rates(self) -> tuple[Fraction, ...]:
        """Exact shares that add up to 1."""
        weights = [Fraction(rate).limit_denominator(10**6) for _, rate in self.parts]
        return tuple(w / sum(weights) for w in weights)

    @property
    def datasets(self) -> tuple[DatasetSpec, ...]:
        return tuple(get(name) for name, _ in self.parts)


_REGISTRY: dict[str, DatasetSpec | MixtureSpec] = {}


def register(name: str, spec: DatasetSpec | MixtureSpec) -> None:
    """Adds a dataset or mixture; a name means one thing only."""
    if _REGISTRY.setdefault(name, spec) != spec:
        raise ValueError(f"{name!r} is registered already, as {_REGISTRY[name]}")


def registered() -> Mapping[str, DatasetSpec | MixtureSpec]:
    """All datasets and mixtures by name."""
    return dict(_REGISTRY)


def get(name: str) -> DatasetSpec:
    """The dataset of that name: a registered one, one that the pipelines built, or a folder.

    Args:
      name: a registered name, a folder below `cache_dir()/datasets`, or a path with a slash in it.
    Raises:
      UserError: unknown name, or a folder that is no dataset.
    """
    spec = _REGISTRY.get(name)
    if isinstance(spec, DatasetSpec):
        return spec
    spec = DatasetSpec(name, str(Path(name).absolute()) if os.sep in name else name, ())
    if os.sep in name or (spec.root / manifest.FILE).exists():
        found = dataset.open_dataset(spec.root).manifest
        return dataclasses.replace(spec, families=tuple(found.families), command=found.command)
    known = sorted(n for n, spec in _REGISTRY.items() if isinstance(spec, DatasetSpec))
    raise _unknown("dataset", name, known)


def open_recordings(
    names: Sequence[str], streams: tuple[str, ...] = (schema.AUDIO,)
) -> tuple[list[schema.Record], list[schema.Record]]:
    """Records with these streams of datasets: of the train splits, those of a dataset named n times
    n times, and of the validation splits, once each.

    Raises:
      UserError: a dataset is not there, or lacks a stream.
    """
    opened = {name: get(name).open(streams) for name in dict.fromkeys(names)}
    train = [record for name in names for record in opened[name].split("train", streams)]
    held_out = [r for one in opened.values() for r in one.split("validation", streams)]
    return train, held_out


def get_mixture(name: str) -> MixtureSpec:
    """The mixture of that name, or a mixture of nothing but the dataset of that name."""
    spec = _REGISTRY.get(name)
    if isinstance(spec, MixtureSpec):
        return spec
    try:
        return MixtureSpec(((get(name).name, 1.0),))
    except UserError:
        if os.sep in name:
            raise
        raise _unknown("dataset or mixture", name, sorted(_REGISTRY)) from None


def _unknown(what: str, name: str, known: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return UserError(
        f"unknown {what} {name!r}",
        f"did you mean {near[0]}? Known: {', '.join(known)}; a dataset that data_pipelines built "
        "goes by its name, any other by the path of its folder",
    )


_COMMAND = "python -m data_pipelines.build {}"
_TEXT = "text-smollm2"

register(
    "prompts",
    DatasetSpec(
        "prompts",
        "prompts",
        (schema.WORDS, schema.AUDIO, _TEXT, "taste", "speaker", "codec", "units"),
        _COMMAND.format("prompts"),
    ),
)
register("text", DatasetSpec("text", "text", (schema.WORDS, _TEXT), _COMMAND.format("text")))
register("prompts_and_text", MixtureSpec((("prompts", 0.9), ("text", 0.1))))
