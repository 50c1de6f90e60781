"""Chips that a job can be planned for: what one of them does, holds and costs."""

from __future__ import annotations

import dataclasses
import difflib

from slm_jax.errors import UserError
from slm_jax.training import flops

_GOOGLE = "on demand in us-central1, SkyPilot's catalogue v8 (gcp/vms.csv at 006059e), 2026-11-26"
_AWS = "on demand in us-east-1, github.com/datareceipts/data-receipts (109-gpu-pricing), 2026-11-09"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in "v5e-256", before the dash.
      kind: jax's device_kind, by which `flops.peak` knows it.
      memory: bytes that the vendor states.
      host: chips of one host (GKE's 4-chip machines; GPU servers of 8).
      price: US dollars a chip and hour.
      source: where and when that price was read.
      node: GKE's label of machines with it.
      dimensions: of a slice's torus; 0 for GPUs.
      counted: what "v5p-128" counts a chip: 2 where Google's name gives cores.
    """

    name: str
    kind: str
    memory: float
    host: int
    price: float
    source: str
    node: str
    dimensions: int = 0
    counted: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 16e9, 4, 1.20, _GOOGLE, "tpu-v5-lite-podslice", 2),
        Chip("v5p", "TPU v5p", 95e9, 4, 4.20, _GOOGLE, "tpu-v5p-slice", 3, 2),
        Chip("v6e", "TPU v6 lite", 32e9, 4, 2.70, _GOOGLE, "tpu-v6e-slice", 2),
        Chip("a100", "NVIDIA A100", 80e9, 8, 3.43, _AWS, "nvidia-a100-80gb"),
        Chip("h100", "NVIDIA H100", 80e9, 8, 6.88, _AWS, "nvidia-h100-80gb"),
        Chip("h200", "NVIDIA H200", 141e9, 8, 3.99,
             "on demand, hyperstack.cloud/gpu-pricing, 2026-08-26", "nvidia-h200-141gb"),
    )
}  # fmt: skip


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
        rate = flops.peak(self.chip.kind)
        assert rate is not None, self.chip
        return rate * self.chips

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
            f"did you mean {near[0]}-N? Known: {', '.join(CHIPS)}; N chips, but cores of v5p.",
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
