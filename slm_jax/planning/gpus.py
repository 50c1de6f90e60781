"""NVIDIA GPUs that are not here, described as XLA's compiler asks for them."""

from __future__ import annotations

import dataclasses

from slm_jax.training.chips import Chip


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What of a GPU shapes a program (NVIDIA's A100 and H100 white papers, H200 data sheet; the
    limits of shared memory are those of the CUDA programming guide).

    Attributes:
      capability: CUDA compute capability, as fields of `CudaComputeCapabilityProto`.
      cores: streaming multiprocessors.
      lanes: f32 units of one.
      bandwidth: of its memory, bytes a second.
      cache: bytes of L2.
      clock: GHz, the boost clock.
      shared: bytes of shared memory of a multiprocessor; a block of threads may have 1 KiB less.
    """

    capability: str
    cores: int
    lanes: int
    bandwidth: float
    cache: int
    clock: float
    shared: int


_HOPPER = "major: 9 feature_extension: ACCELERATED_FEATURES"
GPUS = {
    "a100": Gpu("major: 8", 108, 64, 2.039e12, 40 << 20, 1.41, 164 << 10),
    "h100": Gpu(_HOPPER, 132, 128, 3.352e12, 50 << 20, 1.98, 228 << 10),
    "h200": Gpu(_HOPPER, 132, 128, 4.8e12, 50 << 20, 1.98, 228 << 10),
}


def target(chip: Chip) -> str:
    """The chip as a `stream_executor.GpuTargetConfigProto`, in protobuf's text format."""
    gpu = GPUS[chip.name]
    return f"""
gpu_device_info {{
  name: "{chip.kind}"
  cuda_compute_capability {{ {gpu.capability} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  memory_bandwidth: {gpu.bandwidth:.0f}
  device_memory_size: {chip.memory:.0f}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: {48 << 10}
  shared_memory_per_block_optin: {gpu.shared - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""
