# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs: asked for by name, or the one measured to be the fastest on this device."""

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax
from jax import lax
from jax.core import Tracer

from . import tuned
from .vary import vary, varying

type Implementation = str | Sequence[str] | None
"""None: what this device's table says is fastest, else `xla`. A name: that one or an error. A sequence: the first of
these that can run."""


class Target(NamedTuple):
    """The device that what is being traced will run on."""

    platform: str
    """ "cpu", "cuda", "rocm" or "tpu"."""
    kind: str
    """As JAX names it, "NVIDIA H100 80GB HBM3" or "TPU v5e"."""


class Choice(NamedTuple):
    """The implementation that runs."""

    name: str
    forced: bool
    """Asked for by name: it runs or fails. Otherwise another platform at lowering gets `xla` instead."""


def _never(*_: Any, **__: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of an op."""

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = _never
    """(the op's arguments) -> why it cannot take them, or None. Asked before a launch, never after a failed one."""
    devices: "Devices | None" = None
    """Those it is for; None: every."""


class Devices(NamedTuple):
    """A family of devices."""

    platform: str
    name: str
    kinds: str
    """Regular expression of their kinds."""


HOPPER: Final = Devices("cuda", "Hopper", r"\bG?H(20|100|200|800)\b")
NVIDIA: Final = Devices("cuda", "NVIDIA", "")
TPU: Final = Devices("tpu", "TPU", "TPU")


def kernel(beside: str, module: str, function: str, devices: Devices) -> Backend:
    """A backend in a module of its own, imported when it is first asked: Pallas takes half a second to load.

    Args:
      beside: `__name__` of a module in the same package.
      module: name of the module, "..name" if it lies a package higher, with functions `function` and `refuses`.
      function: the op there.
      devices: what it is for.
    """

    package = beside.rpartition(".")[0]

    def call(name: str) -> Callable[..., Any]:
        full = importlib.util.resolve_name(module if module.startswith(".") else f".{module}", package)
        return lambda *a, **kw: getattr(importlib.import_module(full), name)(*a, **kw)

    return Backend(call(function), call("refuses"), devices)


def target() -> Target:
    """The device of the abstract mesh that is set, else the default device, else the first.

    Example:
      >>> target()
      Target(platform='cpu', kind='cpu')
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.config.jax_default_device or jax.devices()[0]
        if isinstance(device, str):
            device = jax.devices(device)[0]
    gpu = "rocm" if "AMD" in device.device_kind else "cuda"
    return Target(gpu if device.platform == "gpu" else device.platform, device.device_kind)


def choose(
    op: str,
    backends: Mapping[str, Backend],
    implementation: Implementation,
    *args: Any,
    size: Mapping[str, Any] | None = None,
) -> Choice:
    """The implementation that runs.

    Args:
      op: the op's name, for messages and the table.
      backends: what there is; `xla` is among them and takes everything.
      implementation: see `Implementation`.
      *args: the call, shown to each candidate's `refuses`.
      size: the call's entry in the table of measurements, as `tuned.find` takes it; None: not measured.
    Raises:
      ValueError: a name that does not exist; an empty sequence.
      ExceptionGroup: of NotImplementedError, one reason per candidate, when none can take the call.
    Example:
      >>> choose("topk", {"xla": Backend(run=len)}, None)
      Choice(name='xla', forced=False)
    """
    if implementation is None:
        best = None if size is None or len(backends) == 1 else tuned.fastest(op, target().kind, **size)
        if best is None or best not in backends or _reason(backends[best], args, forced=False):
            best = "xla"
        return Choice(best, forced=False)
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not names:
        raise ValueError(f"{op}: implementation is an empty sequence. There are: {', '.join(backends)}.")
    for name in names:
        if name not in backends:
            near = difflib.get_close_matches(str(name), backends, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{op} has no implementation {name!r}.{meant} There are: {', '.join(backends)}.")
    reasons = []
    for name in names:
        reason = _reason(backends[name], args, forced=True)
        if reason is None:
            return Choice(name, forced=True)
        reasons.append(NotImplementedError(f"{op}: {name} cannot run here: {reason}"))
    raise ExceptionGroup(f"{op}: no implementation of {', '.join(names)} can take this call", reasons)


def run(
    op: str,
    backends: Mapping[str, Backend],
    choice: Choice,
    *operands: Any,
    size: Mapping[str, Any] | None = None,
    **static: Any,
) -> Any:
    """Call the implementation chosen, as configured for this device and size.

    What was not asked for by name runs only where its platform is lowered for; `xla` runs elsewhere.
    """
    chosen, anything = backends[choice.name], backends["xla"].run
    config = {} if size is None else tuned.configuration(op, choice.name, target().kind, **size)
    if chosen.devices is None:
        return chosen.run(*operands, **static, **config)

    def launch(*operands):
        out = chosen.run(*operands, **static, **config)
        axes = varying(*jax.tree.leaves(operands))  # a kernel's outputs do not know the mesh axes of their operands
        return jax.tree.map(lambda a: vary(a, axes), out)

    if choice.forced:
        return launch(*operands)
    by_platform = {chosen.devices.platform: launch}
    return lax.platform_dependent(*operands, **by_platform, default=lambda *a: anything(*a, **static))


def _reason(backend: Backend, args: Sequence[Any], *, forced: bool) -> str | None:
    """Why this backend cannot take the call, or None."""
    if backend.devices is None:
        return backend.refuses(*args)
    here, meant = target(), backend.devices
    if here.platform != meant.platform or not re.search(meant.kinds, here.kind):
        return f"it is for {meant.name} devices ({meant.platform}), and this call runs on {here.platform} ({here.kind})"
    return _partitioned(args, forced=forced) or backend.refuses(*args)


def _partitioned(args: Sequence[Any], *, forced: bool) -> str | None:
    """Kernels see one device's part: say so where an operand may lie on several."""
    remedy = "call it inside jax.shard_map, on each device's part"
    mesh = jax.sharding.get_abstract_mesh()
    manual = not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names)
    for a in args:
        if not isinstance(a, jax.Array) or manual:
            continue
        if isinstance(a, Tracer):
            spec = jax.typeof(a).sharding.spec
            if any(axis is not None for axis in spec):
                return f"an operand is sharded as {spec}; {remedy}"
            if not forced and _device_count(mesh) > 1:
                return f"several devices are visible and the compiler may partition an operand; {remedy}"
        elif len(a.sharding.device_set) > 1:
            return f"an operand of shape {list(a.shape)} lies on {len(a.sharding.device_set)} devices; {remedy}"
    return None


def _device_count(mesh: jax.sharding.AbstractMesh) -> int:
    """How many devices a program traced under this mesh may be spread over."""
    if not mesh.empty:
        return mesh.size
    return 1 if mesh.abstract_device is not None else jax.device_count()
