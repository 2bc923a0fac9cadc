# SPDX-License-Identifier: Apache-2.0
"""How much memory will a run need? Known from the compiled step before anything is allocated."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ..errors import UserError
from ..protocols import Method
from .buffer import BufferState
from .driver import IN_FLIGHT
from .feed import AHEAD
from .identity import is_key
from .placement import compiled, everywhere
from .progress import quantity

_CGROUP: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of this process's group: version 2, version 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one device while a step runs, in XLA's own account of the compiled program."""

    state: int
    """The method's state; donated, so the new one takes its place."""
    constants: int
    """Weights and tables."""
    batches: int
    """The batch of the step and those that wait."""
    temporary: int
    """What the step needs while it runs, its program included."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.constants + self.batches + self.temporary

    def check(self, free: int | None, *, there: int = 0, advice: str = "") -> None:
        """Refuse what cannot fit.

        Args:
          free: bytes that can be had, None: nobody knows.
          there: bytes of the plan that are on the device already (weights).
          advice: what would help.
        Raises:
          UserError: all numbers, and the advice.
        """
        if free is None or self.total - there <= free:
            return
        parts = ", ".join(
            f"{name} {size(value)}"
            for name, value in (
                ("state", self.state),
                ("constants", self.constants),
                ("batches", self.batches),
                ("the step's temporary memory", self.temporary),
            )
            if value
        )
        raise UserError(
            f"this run needs {size(self.total)} on each device ({parts}), of which {size(there)} are there already, "
            f"but {size(free)} are free. Nothing was started. {advice}".rstrip()
        )


def size(n: int) -> str:
    """Bytes with three digits.

    Example:
      >>> size(22_200_000_000)
      '22.2 GB'
    """
    return re.sub(r"(?=[GMk]?$)", " ", quantity(n), count=1) + "B"


def check_state(
    method: Method,
    batch: Any,
    free: int | None,
    *,
    key: jax.Array,
    constants: Mapping[str, Any] | None = None,
    sharding: Sharding | None = None,
    advice: str = "",
) -> None:
    """Refuse a state that alone does not fit, before anything is compiled, which takes minutes where it is large.

    Raises:
      UserError: with numbers.
    """
    state = jax.eval_shape(method.init, key, {**batch, **constants} if constants else batch)
    devices = 1 if sharding is None else len(sharding.device_set)
    Plan(state=_bytes(state) // devices, constants=0, batches=0, temporary=0).check(free, there=0, advice=advice)


def planned(
    method: Method,
    batch: Any,
    *,
    key: jax.Array,
    constants: Mapping[str, Any] | None = None,
    sharding: Sharding | None = None,
) -> Plan:
    """What `run` will need, from the step's compiled program; only shapes are used and nothing is allocated.

    `run` of the same method object, over batches of these shapes, finds the program compiled: the cost is paid once.
    On several devices the state's layout is what XLA gives `init`, compiled for it.

    Args:
      method: that will run.
      batch: the first batch or its shapes, without constants.
      key, constants, sharding: as `run` takes them.
    Raises:
      UserError: what `init` and `step` raise for these shapes.
    Example:
      >>> from jaxneuro.activations import moments
      >>> rows = {"x": jax.ShapeDtypeStruct((1024, 8), "float32")}
      >>> planned(moments(), rows, key=jax.random.key(0)).constants
      0
    """
    fixed = dict(constants or {})
    one = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: _shape(x, _laid(x, sharding)), batch)
    spread = everywhere(sharding)
    held = jax.tree.map(lambda x: _shape(x, _kept(x) or spread), fixed)
    state = _state(method, _shape(key, spread), {**shapes, **held} if fixed else shapes, sharding)
    layout = jax.tree.map(lambda x: _shape(x, x.sharding or one), state)
    step: Any = compiled(method.step, layout)
    program = step.lower(state, shapes, held).compile()
    memory = program.memory_analysis()
    arrays = _bytes(layout) + _bytes(held) + _bytes(shapes)
    return Plan(
        state=_bytes(layout),
        constants=_bytes(held),
        batches=_bytes(shapes) * (AHEAD + IN_FLIGHT),
        temporary=int(
            memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
            + max(0, memory.argument_size_in_bytes - arrays)
            + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
        ),
    )


def _state(method: Method, key: Any, batch: Any, sharding: Sharding | None) -> Any:
    if sharding is None:
        return jax.eval_shape(method.init, key, batch)
    spread = everywhere(sharding)
    init = jax.jit(method.init).lower(key, batch).compile()
    where = jax.tree.map(lambda s: s if len(s.device_set) > 1 else spread, init.output_shardings)
    shapes = jax.tree.map(_shape, jax.eval_shape(method.init, key, batch), where)
    return jax.tree.map(lambda x: _split(x, sharding), shapes, is_leaf=lambda x: isinstance(x, BufferState))


def _split(x: Any, sharding: Sharding) -> Any:
    """A buffer as its init lays it out where it sees devices, which shapes do not show: rows split as batches are."""
    if not isinstance(x, BufferState) or not isinstance(sharding, NamedSharding):
        return x
    along = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0] if sharding.spec else None))

    def part(rows: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        slots = rows.shape[1]
        parts = slots // along.shard_shape((slots,))[0]
        return _shape(jax.ShapeDtypeStruct((parts, slots // parts, *rows.shape[2:]), rows.dtype), along)

    return x._replace(rows=jax.tree.map(part, x.rows))


def _laid(x: Any, sharding: Sharding | None) -> Sharding | None:
    """Where `feed.placer` puts a leaf."""
    if isinstance(sharding, NamedSharding) and not np.ndim(x):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def _kept(x: Any) -> Sharding | None:
    """The layout of what lies on several devices already."""
    return x.sharding if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 else None


def _shape(x: Any, sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    dtype = x.dtype if is_key(x) else jax.dtypes.canonicalize_dtype(x.dtype)
    return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=sharding)


def _bytes(tree: Any) -> int:
    """On one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        total += int(np.prod(shape)) * x.dtype.itemsize
    return total


def free_bytes(device: Any = None) -> int | None:
    """What can still be allocated on a device: of its own limit, on a CPU of the machine's or the container's memory.

    Args:
      device: a `jax.Device`; None: the first.
    Returns:
      None where neither says.
    """
    device = device or jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    found = [limit - use for limit, use in map(_group, _CGROUP) if limit is not None and use is not None]
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    return min(found, default=None)


def _group(files: tuple[str, str]) -> tuple[int | None, int | None]:
    texts = [Path(f).read_text().strip() if Path(f).exists() else "" for f in files]
    limit, use = (int(t) if t.isdigit() else None for t in texts)
    return limit, use
