"""The kinds of chip that are known: what one of them is called, computes, holds and costs."""

from __future__ import annotations

import dataclasses

GIB = 2**30

_GOOGLE = "on demand in us-central1, SkyPilot's catalogue v8 (gcp/vms.csv at 006059e), 2026-11-26"
_AWS = "on demand in us-east-1, github.com/datareceipts/data-receipts (109-gpu-pricing), 2026-11-09"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in "v5e-256", before the dash.
      kind: how jax's device_kind begins.
      peak: dense bfloat16 operations a second, as the vendor states.
      memory: bytes that a program may take. Of a TPU what its compiler grants, which is the HBM
        less what the runtime keeps (tests/aot_tpu asks it; a v4's is assumed); of a GPU what the
        vendor states.
      host: chips of one host (GKE's 4-chip machines; GPU servers of 8).
      price: US dollars a chip and hour.
      source: where and when that price was read.
      node: GKE's label of machines with it.
      dimensions: of a slice's torus; 0 for GPUs.
      counted: what "v5p-128" counts a chip: 2 where Google's name gives cores.
    """

    name: str
    kind: str
    peak: float
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
        Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 4, 1.20, _GOOGLE,
             "tpu-v5-lite-podslice", 2),
        Chip("v5p", "TPU v5", 459e12, 95.74 * GIB, 4, 4.20, _GOOGLE, "tpu-v5p-slice", 3, 2),
        Chip("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 4, 2.70, _GOOGLE, "tpu-v6e-slice", 2),
        Chip("v4", "TPU v4", 275e12, 30.75 * GIB, 4, 3.22,
             "on demand in us-central2, cloud.google.com/tpu/pricing, 2022-08-11",
             "tpu-v4-podslice", 3, 2),
        Chip("a100", "NVIDIA A100", 312e12, 80e9, 8, 3.43, _AWS, "nvidia-a100-80gb"),
        Chip("h100", "NVIDIA H100", 989e12, 80e9, 8, 6.88, _AWS, "nvidia-h100-80gb"),
        Chip("h200", "NVIDIA H200", 989e12, 141e9, 8, 3.99,
             "on demand, hyperstack.cloud/gpu-pricing, 2026-08-26", "nvidia-h200-141gb"),
    )
}  # fmt: skip


def of_kind(device_kind: str) -> Chip | None:
    """The chip of which jax says this kind, None where unknown."""
    fits = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(fits, key=lambda chip: len(chip.kind), default=None)
