# SPDX-License-Identifier: Apache-2.0
"""Compile for an accelerator that is not there, on a machine that has only a CPU.

Three depths:

| function | what runs | needs besides jax |
|---|---|---|
| `lower` | tracing and Pallas' lowering, layouts included | nothing |
| `compile_gpu` | XLA, Mosaic GPU and ptxas for an H100: registers, spills, temporary bytes | the wheels in GPU_WHEELS |
| `compile_tpu` | XLA and Mosaic for a TPU | libtpu |

Deviceless compilation says which program runs, not how fast it is: matmul autotuning needs the device. The process must
run on the CPU (`jax.config.update("jax_platforms", "cpu")` before any backend starts), or the CUDA plug-in looks for a
driver.
"""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import jax
from jax import export
from jax.experimental import topologies

H100: Final = "NVIDIA H100 80GB HBM3"
GPU_WHEELS: Final = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
"""What a deviceless GPU compilation takes, the first two in jax's version, all installed with --no-deps."""
TPUS: Final = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
"""Topologies that libtpu knows, by generation."""

_CUSTOM_CALLS: Final = ("__gpu$xla.gpu.triton", "mosaic_gpu_v2", "mosaic_gpu", "tpu_custom_call")
# An H100 SXM by its data sheet and device properties, in the text format of XLA's GpuTargetConfig.
_H100_TARGET: Final = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  device_vendor: "NVIDIA Corporation" name: "{H100}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{H100}"
"""


class GpuReport(NamedTuple):
    """What compiling for an H100 said."""

    registers: tuple[int, ...]
    """Per thread, of every Mosaic GPU kernel in the program."""
    spilled_bytes: int
    serialized: bool
    """ptxas had to wait after every wgmma: the matmul would run at a fraction of its speed."""
    temp_bytes: int
    targets: tuple[str, ...]
    """Custom calls in the program."""


@contextlib.contextmanager
def pretend(kind: str = H100, platform: str = "gpu", cores: int = 132) -> Iterator[None]:
    """Trace as if on this device: dispatch and Pallas see it instead of the machine's own.

    Example:
      >>> from jaxneuro_kernels.dispatch import target
      >>> with pretend():
      ...     target().kind
      'NVIDIA H100 80GB HBM3'
    """
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield


def lower(f: Callable, *args: Any, platform: str) -> str:
    """The program's StableHLO for "cuda" or "tpu", Pallas kernels lowered to their dialects.

    Args:
      f: what to lower; jitted here.
      *args: arrays or ShapeDtypeStructs.
      platform: "cuda" or "tpu".
    Raises:
      whatever Pallas raises where a kernel cannot be lowered.
    """
    where = pretend() if platform == "cuda" else contextlib.nullcontext()
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in _CUSTOM_CALLS]
    with where, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export.export(jax.jit(f), platforms=[platform], disabled_checks=checks)(*args).mlir_module()


def missing_wheels(platform: str) -> str | None:
    """What to install before `compile_gpu` ("cuda") or `compile_tpu` ("tpu") can work, or None."""
    wanted = {"cuda": "jax_plugins.xla_cuda13", "tpu": "libtpu"}[platform]
    try:
        found = importlib.util.find_spec(wanted)
    except ModuleNotFoundError:
        found = None
    if found is not None:
        return None
    packages = " ".join(GPU_WHEELS) if platform == "cuda" else "libtpu"
    return f"compiling for {platform} without a device needs: pip install --no-deps {packages}"


def compile_gpu(f: Callable, *args: Any) -> tuple[jax.stages.Compiled, GpuReport]:
    """Compile for an H100.

    Args:
      f: what to compile; jitted here.
      *args: arrays or ShapeDtypeStructs.
    """
    return reported(lambda: _compile("cuda", "", f, args))


def reported(compile_it: Callable[[], jax.stages.Compiled]) -> tuple[jax.stages.Compiled, GpuReport]:
    """Call a function that compiles for a GPU, here or not, and collect what is said about the Mosaic kernels."""
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    try:
        with _standard_streams() as said:
            compiled = compile_it()
    finally:
        del os.environ["MOSAIC_GPU_DUMP_PTXAS"]
    log, text, memory = said(), compiled.as_text() or "", compiled.memory_analysis()
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return compiled, GpuReport(
        registers=tuple(int(n) for n in re.findall(r"Used (\d+) registers", log)),
        spilled_bytes=sum(int(a) + int(b) for a, b in spills),
        serialized="wgmma" in log and "serializ" in log,
        temp_bytes=0 if memory is None else int(memory.temp_size_in_bytes),
        targets=tuple(sorted(set(re.findall(r'custom_call_target="([^"]+)"', text)))),
    )


def compile_tpu(f: Callable, *args: Any, generation: str = "v5e") -> jax.stages.Compiled:
    """Compile for a TPU.

    Args:
      f: what to compile; jitted here.
      *args: arrays or ShapeDtypeStructs.
      generation: one of TPUS.
    """
    # Otherwise libtpu asks a metadata server that only cloud machines have.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    return _compile("tpu", TPUS[generation], f, args)


@functools.cache
def _devices(platform: str, topology: str) -> Any:
    if platform == "cuda":
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=_H100_TARGET, topology="1x1x1"
        )
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return found.devices[:1]


def _compile(platform: str, topology: str, f: Callable, args: tuple) -> jax.stages.Compiled:
    mesh = jax.sharding.Mesh(_devices(platform, topology), ("x",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), args)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jax.jit(f, out_shardings=whole).lower(*shapes).compile()


@contextlib.contextmanager
def _standard_streams() -> Iterator[Callable[[], str]]:
    """Collect what C++ writes to the process's standard output and error (ptxas reports there)."""
    text = ""
    with tempfile.TemporaryFile(mode="w+b") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            text = file.read().decode(errors="replace")
