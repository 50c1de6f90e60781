"""TPU slices and GPUs that are not here, as devices that programs can be compiled for.

libtpu, or jax's plugin for NVIDIA GPUs, brings the compiler; no chip is needed or touched.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from slm_jax.errors import UserError
from slm_jax.planning import gpus
from slm_jax.planning.accelerators import Accelerator

# Slices that `aot.smallest` tries.
SIZES = {
    "v5e": (1, 4, 8, 16, 32, 64, 128, 256),
    "v6e": (1, 4, 8, 16, 32, 64, 128, 256),
    "v5p": (8, 16, 32, 64, 128, 256, 512),
}
# libtpu asks the machine where it stands, and complains when it is no TPU host; and it lets one
# process have it, which is for those that run a TPU.
_ALONE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(accelerator: Accelerator) -> Sequence[jax.Device]:
    """The chips of an accelerator, for `jax.make_mesh` and compilation alone.

    Raises:
      UserError: a TPU that is none of `SIZES` (a v4 is described as two devices a chip, which JAX
        makes no meshes of), GPUs that do not fill their hosts, or no compiler is installed.
    """
    if accelerator.platform == "gpu":
        return _gpus(accelerator)
    if accelerator.chip.name not in SIZES:
        raise UserError(
            f"{accelerator.name} cannot be compiled for without one",
            f"name one of {', '.join((*SIZES, *gpus.GPUS))}, or leave --aot out: the arithmetic "
            "knows it.",
        )
    return _tpus(accelerator)


def _gpus(accelerator: Accelerator) -> Sequence[jax.Device]:
    hosts, chips = accelerator.hosts, accelerator.chips
    if chips % hosts:
        raise UserError(
            f"{accelerator.name}: {chips} GPUs do not divide over {hosts} hosts",
            f"give a multiple of {accelerator.chip.host}.",
        )
    if not any(map(importlib.util.find_spec, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        raise UserError(
            "jax's plugin for NVIDIA GPUs, which has the compiler, is not installed",
            "pip install 'slm_jax[cuda13]' (Linux; no GPU is needed)",
        )
    described = topologies.get_topology_desc(
        accelerator.name,
        platform="cuda",
        topology=f"1x{hosts}x{chips // hosts}",
        target_config=gpus.target(accelerator.chip),
    )
    return described.devices


def _tpus(accelerator: Accelerator) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the compiler for TPUs, is not installed",
            "pip install 'slm_jax[tpu]' (Linux on x86-64; no TPU is needed)",
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    sides = [int(side) for side in accelerator.topology.split("x")]
    if accelerator.chip.dimensions == 3:  # a torus from a cube of 4x4x4 on
        wrap = [all(side % 4 == 0 for side in sides)] * 3
    else:  # along a whole side of the pod
        wrap = [side == 16 for side in (*sides, 1)]
    sides += [1] * (3 - len(sides))
    host = [min(side, most) for side, most in zip(sides, (2, 2, 1), strict=True)]
    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{accelerator.chip.name}:{accelerator.topology}",
        chips_per_host_bounds=tuple(host),
        num_slices=accelerator.slices,
        wrap=tuple(wrap),
    )
    return described.devices
