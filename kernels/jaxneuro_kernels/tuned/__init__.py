# SPDX-License-Identifier: Apache-2.0
"""What was measured, per device kind: which implementation of an op is the fastest at a size, and its configuration.

One JSON file per device kind lies in this folder, written by `python -m jaxneuro_kernels.tune` on such a device.
Nothing is ever measured implicitly. Where a size was not measured, the nearest one counts if every number of it is
within a factor of two; else `xla` runs, and a kernel asked for by name takes its own default configuration.
"""

import contextlib
import contextvars
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
_NEAR: Final = 1.0
"""Largest |log2| of a ratio of sizes."""


def path(kind: str) -> Path:
    """The file of a device kind.

    Example:
      >>> path("NVIDIA H100 80GB HBM3").name
      'nvidia-h100-80gb-hbm3.json'
    """
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") + ".json")


@functools.lru_cache(maxsize=32)
def rows(kind: str) -> tuple[Mapping[str, Any], ...]:
    """All measurements of a device kind, none if it has no file."""
    file = path(kind)
    return tuple(json.loads(file.read_text())["rows"]) if file.exists() else ()


def find(op: str, kind: str, *, dtype: str, **sizes: int) -> tuple[Mapping[str, Any], ...]:
    """The measurements of all implementations at the size nearest to this one, fastest first; empty if none is near.

    Args:
      op: name of the op.
      kind: device kind, as JAX names it.
      dtype: of the main operand.
      **sizes: positive ints by name: those the op's measurements have (tokens, d, n, k).
    """
    if 0 in sizes.values():
        return ()
    by_size: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows(kind):
        if row["op"] == op and row["dtype"] == dtype and all(name in row for name in sizes):
            by_size.setdefault(tuple(row[name] for name in sizes), []).append(row)
    best, nearest = math.inf, ()
    for size, measured in by_size.items():
        apart = [abs(math.log2(a / b)) for a, b in zip(size, sizes.values(), strict=True)]
        if max(apart, default=0.0) <= _NEAR and sum(apart) < best:
            best, nearest = sum(apart), measured
    return tuple(sorted(nearest, key=lambda row: row["ms"]))


def fastest(op: str, kind: str, **size: Any) -> str | None:
    """Name of the fastest implementation at this size, or None if nothing near was measured. Arguments: see `find`."""
    found = find(op, kind, **size)
    return found[0]["implementation"] if found else None


_forced: contextvars.ContextVar[Mapping[str, int] | None] = contextvars.ContextVar("configuration", default=None)


@contextlib.contextmanager
def using(config: Mapping[str, int]) -> Iterator[None]:
    """Ops traced here take this configuration, whatever was measured. Jitted ops keep the one they were traced with.

    Example:
      >>> with using({"slots": 3}):
      ...     configuration("sparse_decode", "mosaic_gpu", "any", dtype="bfloat16")
      {'slots': 3}
    """
    token = _forced.set(config)
    try:
        yield
    finally:
        _forced.reset(token)


def configuration(op: str, implementation: str, kind: str, **size: Any) -> Mapping[str, int]:
    """The fastest measured configuration of one implementation at this size; empty: take the default."""
    if (forced := _forced.get()) is not None:
        return forced
    for row in find(op, kind, **size):
        if row["implementation"] == implementation:
            return row["config"]
    return {}
