"""So many chips as a user names them: "v5e-256", "h100-64", "2xv5p-128"."""

from __future__ import annotations

import dataclasses
import difflib

from slm_jax.errors import UserError
from slm_jax.training.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """So many chips of a kind.

    Attributes:
      name: as the user wrote it.
      chip, chips: what and how many; of all slices together.
      slices: TPU slices that a slow network joins.
    """

    name: str
    chip: Chip
    chips: int
    slices: int = 1

    @property
    def peak(self) -> float:
        """Dense bfloat16 operations a second of all chips."""
        return self.chip.peak * self.chips

    @property
    def platform(self) -> str:
        """As jax calls it."""
        return "tpu" if self.chip.dimensions else "gpu"

    @property
    def hosts(self) -> int:
        """Of each slice; one process runs on each."""
        return -(-self.chips // self.slices // self.chip.host)

    @property
    def topology(self) -> str:
        """Of one slice, as GKE names it: "16x16", "4x4x8"; only of TPUs."""
        bits = (self.chips // self.slices).bit_length() - 1
        count = self.chip.dimensions
        sides = [1 << (bits + place) // count for place in range(count)]
        return "2x2x1" if sides == [1, 2, 2] else "x".join(map(str, sides))


def parse(name: str) -> Accelerator:
    """The accelerator of a name: "v5e-256" (chips), "v5p-128" (cores, as Google counts: 64 chips),
    "h100-64" (GPUs), "2xv5e-256" (two slices).

    Raises:
      UserError: no such chip, or no such number of them.
    """
    slices, _, one = name.rpartition("x")
    kind, _, count = one.partition("-")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)
        raise UserError(
            f"unknown accelerator {name!r}",
            f"did you mean {near[0]}-N? Known: {', '.join(CHIPS)}; N chips, but of v4 and v5p "
            "cores.",
        )
    chip = CHIPS[kind]
    if not count.isdecimal() or not (slices or "1").isdecimal():
        raise UserError(f"accelerator {name!r} has no number", f"write {kind}-8, or 2x{kind}-8.")
    chips, groups = int(count) // chip.counted, int(slices or 1)
    wrong = int(count) % chip.counted or not chips or not groups
    if wrong or (chip.dimensions and chips & (chips - 1)) or (groups > 1 and not chip.dimensions):
        raise UserError(
            f"there is no {name}",
            "give a power of two of TPU chips, as v5e-256 or, in two slices, 2xv5e-256; GPUs have "
            "no slices, h100-64.",
        )
    return Accelerator(name, chip, chips * groups, groups)
