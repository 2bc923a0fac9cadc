# SPDX-License-Identifier: Apache-2.0
"""Measure compiled programs side by side and keep the numbers."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Program:
    """One thing to time: a jitted function, its arguments, and how to compare what it returns."""

    op: str
    function: Callable
    arguments: tuple
    shape: dict[str, int]
    dtype: str
    compiled: Callable | None = None
    """What to call when it is not the compiled function itself (a Python loop around one, say)."""
    carries: bool = False
    """A training step: the first argument is donated and replaced by the first result, as a training loop does."""
    reference: Callable[[Any], float] | None = None
    """result -> largest absolute error against the reference."""


def compile_program(program: Program) -> tuple[Callable, dict]:
    """The function to call and what compiling it took."""
    if program.compiled is not None:
        return program.compiled, {"compile_ms": None, "peak_bytes": None}
    started = time.perf_counter()
    donated = (0,) if program.carries else ()
    compiled = jax.jit(program.function, donate_argnums=donated).lower(*program.arguments).compile()
    took = (time.perf_counter() - started) * 1e3
    memory = compiled.memory_analysis()
    peak = None if memory is None else int(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    numbers = {"compile_ms": round(took, 1), "peak_bytes": peak}
    return _carrying(compiled, program.arguments[0]) if program.carries else compiled, numbers


def _carrying(step: Callable, state: Any) -> Callable:
    state = jax.tree.map(jnp.array, state)  # the donated copy

    def call(_: Any, *rest: Any) -> Any:
        nonlocal state
        state, info = step(state, *rest)
        return info

    return call


def run(programs: Sequence[Program], repeats: int) -> Iterator[dict]:
    """One row per program; all are called in turn, `repeats` times, so that a busy machine disturbs all alike."""
    ready = [compile_program(p) for p in programs]
    errors = []
    for p, (call, _) in zip(programs, ready, strict=True):
        result = jax.block_until_ready(call(*p.arguments))
        errors.append(None if p.reference is None else p.reference(result))
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for p, (call, _), mine in zip(programs, ready, times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(call(*p.arguments))
            mine.append((time.perf_counter() - started) * 1e3)
    for p, (_, compiling), mine, error in zip(programs, ready, times, errors, strict=True):
        p20, p50, p80 = (round(float(q), 3) for q in np.percentile(mine, [20, 50, 80]))
        yield {
            "op": p.op,
            "shape": p.shape,
            "dtype": p.dtype,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            **compiling,
            "error": error,
        }


def with_ratio(rows: list[dict], base: str, *, inverse: bool = False) -> list[dict]:
    """Every row with its median as a ratio to the row named `base` (inverse: how many times faster than it)."""
    reference = next(r["p50_ms"] for r in rows if r["op"] == base)
    key = f"speed-up over {base}" if inverse else f"time / {base}"
    return [r | {key: round(reference / r["p50_ms"] if inverse else r["p50_ms"] / reference, 3)} for r in rows]


def machine() -> dict:
    """Where the numbers come from."""
    device = jax.devices()[0]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS, check=False)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "flax", "optax")}
    return {
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "cores": len(__import__("os").sched_getaffinity(0)) if device.platform == "cpu" else None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor's name, as Linux tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"CPU {found[1]}" if found else f"CPU {platform.machine()}"


def save(name: str, rows: list[dict]) -> Path:
    """Write the rows with the machine's description."""
    where = machine()
    label = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    path = RESULTS / f"{name}-{label}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    return path


def show(name: str, rows: list[dict]) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name)
    columns = [k for k in rows[0] if k not in ("shape", "dtype")]
    for column in columns:
        table.add_column(column, justify="left" if column == "op" else "right")
    for row in rows:
        table.add_row(*("" if row.get(c) is None else f"{row[c]:,}" if c != "op" else row[c] for c in columns))
    Console(width=150).print(table)
    print("shapes:", *sorted({f"{r['op']}: {r['shape']} {r['dtype']}" for r in rows}), sep="\n  ")
