# SPDX-License-Identifier: Apache-2.0
"""Measure compiled programs side by side and keep the numbers."""

import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUEUED_S = 0.1
"""Seconds of work that hide any launch."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One thing to time: a jitted function, its arguments, and how to compare what it returns."""

    op: str
    function: Callable
    arguments: tuple
    shape: dict[str, Any]
    dtype: str
    compiled: Callable | None = None
    """What to call when it is not the compiled function itself (a Python loop around one, another library)."""
    others: tuple[tuple, ...] = ()
    """Further arguments of the same types: calls take them in turn, so that no cache keeps the only ones."""
    start: Callable[[], Any] | None = None
    """For a training step: makes its state, fresh arrays. The state is donated, comes before the arguments and is
    replaced by the first result, as a training loop does. What is in `compiled` changes its state itself."""
    reference: Callable[[Any], float] | None = None
    """result -> largest absolute error against the reference."""
    wait: Callable[[Any], Any] = jax.block_until_ready
    """Returns when the result, and so all work queued before it, is there."""
    peak: Callable[[], int] | None = None
    """Where no compiler says: most bytes allocated since it was last called."""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else its row says."""


def compile_program(program: Program) -> tuple[Callable, dict]:
    """The function to call and what compiling it took."""
    state = () if program.start is None else (program.start(),)
    if program.compiled is not None:
        return functools.partial(program.compiled, *state), {"compile_ms": None, "peak_bytes": None}
    started = time.perf_counter()
    donated = (0,) if state else ()
    compiled = jax.jit(program.function, donate_argnums=donated).lower(*state, *program.arguments).compile()
    took = (time.perf_counter() - started) * 1e3
    memory = compiled.memory_analysis()
    peak = None if memory is None else int(memory.temp_size_in_bytes + memory.output_size_in_bytes)
    numbers = {"compile_ms": round(took, 1), "peak_bytes": peak}
    return _carrying(compiled, *state) if state else compiled, numbers


def _carrying(step: Callable, state: Any) -> Callable:
    def call(*arguments: Any) -> Any:
        nonlocal state
        state, info = step(state, *arguments)
        return info

    return call


class _Running:
    """A program and what was measured of it; nothing more once something failed."""

    def __init__(self, program: Program, inner: int) -> None:
        self.program, self.times, self.error, self.failed, self.inner = program, [], None, None, inner
        self.numbers: dict = {"compile_ms": None, "peak_bytes": None}
        self.sets = itertools.cycle((program.arguments, *program.others))
        self.call: Callable | None = None
        self._try(self._prepare)

    def _try(self, act: Callable, *args: Any) -> None:
        if self.failed is None:
            try:
                act(*args)
            except Exception as e:
                self.failed, self.call = told(e), None

    def _prepare(self) -> None:
        p = self.program
        self.call, self.numbers = compile_program(p)
        if p.peak is not None:
            p.peak()
        result = self.call(*p.arguments)
        p.wait(result)
        if p.peak is not None:
            self.numbers = self.numbers | {"peak_bytes": p.peak()}
        self.error = None if p.reference is None else p.reference(result)
        del result
        if self.inner > 1:
            started = time.perf_counter()
            p.wait(self.call(*p.arguments))
            self.inner = max(1, min(self.inner, int(QUEUED_S / (time.perf_counter() - started))))

    def sample(self) -> None:
        """Time calls queued back to back."""
        self._try(self._sample)

    def _sample(self) -> None:
        assert self.call is not None
        chosen, result = [next(self.sets) for _ in range(self.inner)], None
        started = time.perf_counter()
        for arguments in chosen:
            result = self.call(*arguments)
        self.program.wait(result)
        self.times.append((time.perf_counter() - started) * 1e3 / self.inner)

    def row(self) -> dict:
        p = self.program
        measured = self.times if self.failed is None else []
        quantiles = np.percentile(measured, [20, 50, 80]) if measured else (None,) * 3
        p20, p50, p80 = (None if q is None else round(float(q), 4) for q in quantiles)
        return {
            "op": p.op,
            **p.columns,
            "shape": p.shape,
            "dtype": p.dtype,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            **self.numbers,
            "error": self.error,
            **({} if self.failed is None else {"failed": self.failed}),
        }


def told(e: BaseException) -> str:
    """An exception in one line; the first of a group speaks for it.

    Example:
      >>> told(ExceptionGroup("two", [ValueError("first\\nline"), ValueError("second")]))
      'ValueError: first line'
    """
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    return f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"


def run(programs: Sequence[Program], repeats: int, inner: int = 1, *, together: bool = True) -> Iterator[dict]:
    """One row per program; what fails has its error in `failed`, and no times.

    Args:
        programs: called in turn, `repeats` times, so that a busy machine disturbs all alike; each time in another
            order, because a program also pays for what the one before it left in caches and in free memory.
        repeats: samples per program.
        inner: calls per sample, queued back to back and waited for once: on an accelerator the time to launch then
            hides behind the work before it. Fewer where they take longer than QUEUED_S.
        together: False: one program after the other, each let go of before the next, where memory holds no two.
    """
    if not together:
        for program in programs:
            yield from run([program], repeats, inner)
        return
    running, rng = [_Running(p, inner) for p in programs], np.random.default_rng(0)
    for _ in range(repeats):
        for i in rng.permutation(len(running)):
            running[i].sample()
    for r in running:
        yield r.row()


class Peer:
    """A program of another library in a process of its own, called as `sample(steps)`: milliseconds per step.

    It sees none of our modules (`-P`: one of these folders is called kernels). The script, beside this file, prints its
    version, then answers every number of steps with a time.
    """

    def __init__(self, python: str, script: str, *arguments: object):
        command = [python, "-P", str(Path(__file__).with_name(script)), *map(str, arguments)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        pipes: Any = {"env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, bufsize=1)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self.version = self._out.readline().strip()
        if not self.version:
            raise RuntimeError(f"{arguments[0]} does not run under {python}: see its error above.")

    def sample(self, steps: int) -> float:
        """Time so many."""
        return float(self.ask(str(steps)))

    def ask(self, line: str) -> str:
        """Its answer to one line."""
        print(line, file=self._in, flush=True)
        answer = self._out.readline()
        if not answer:
            raise RuntimeError(f"the peer ended without an answer to {line!r}: see its error above.")
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate()


def in_turn(samples: dict[str, Callable[[int], float]], repeats: int, inner: int = 1) -> dict[str, list[float]]:
    """Milliseconds per step of every program, one sample of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(repeats):
        for name, sample in samples.items():
            times[name].append(sample(inner))
            print(".", end="", file=sys.stderr, flush=True)
    return times


def quantiles(ms: Sequence[float]) -> dict[str, float]:
    """As a row has them."""
    return {f"p{q}_ms": round(float(np.percentile(ms, q)), 4) for q in (20, 50, 80)}


def with_ratio(rows: list[dict], base: str, *, inverse: bool = False) -> list[dict]:
    """Every row with its median as a ratio to the row named `base` (inverse: how many times faster than it)."""
    reference = next(r["p50_ms"] for r in rows if r["op"] == base)
    key = f"speed-up over {base}" if inverse else f"time / {base}"
    return [r | {key: ratio(reference, r["p50_ms"]) if inverse else ratio(r["p50_ms"], reference)} for r in rows]


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, None where one was not measured."""
    return None if a is None or b is None else round(a / b, 3)


def machine() -> dict:
    """Where the numbers come from."""
    device = jax.devices()[0]
    git = shutil.which("git")
    said = git and subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "flax", "optax")}
    if "torch" in sys.modules:
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "cores": cores() if device.platform == "cpu" else None,
        "python": platform.python_version(),
        "versions": versions,
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "commit": (said.stdout.strip() if said else "") or None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor's name, as Linux tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"CPU {found[1]}" if found else f"CPU {platform.machine()}"


def label_of(device: str) -> str:
    """A device's name as files have it.

    Example:
      >>> label_of("CPU Example(R) 3 @ 2 GHz")
      'cpu-example-r-3-2-ghz'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def save(name: str, rows: list[dict]) -> Path:
    """Write the rows with the machine, and what `benchmarks.correctness` found there at this commit, if anything."""
    where = machine()
    label = label_of(where["device"])
    found = _correctness(RESULTS / f"correctness-{label}.json", where["commit"])
    if name != "correctness" and found is not None:
        where["correctness"] = found
    path = RESULTS / f"{name}-{label}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    return path


def _correctness(path: Path, commit: str | None) -> str | None:
    """Passed, or failed and where; None: nothing is known of this commit."""
    checked = json.loads(path.read_text()) if path.exists() else {}
    if not checked or checked["machine"]["commit"] != commit:
        return None
    wrong = sorted({f"{r['op']} ({r['implementation']})" for r in checked["rows"] if not r["passed"]})
    return "failed: " + ", ".join(wrong) if wrong else "passed"


def show(name: str, rows: list[dict]) -> None:
    """Print the rows as a table, or one per named shape; rows without a shape are single trials, for the file."""
    rows = [row for row in rows if "shape" in row]
    for size in dict.fromkeys(r["shape"].get("name") for r in rows):
        _table(f"{name}: {size}" if size else name, [r for r in rows if r["shape"].get("name") == size])
    print(
        "shapes:", *sorted({f"{r['shape'].get('name', r['op'])}: {r['shape']} {r['dtype']}" for r in rows}), sep="\n  "
    )


def _table(title: str, rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    hidden = {"shape"} if len({r["dtype"] for r in rows}) > 1 else {"shape", "dtype"}
    columns = [c for c in dict.fromkeys(k for row in rows for k in row) if c not in hidden]
    for column in columns:
        text = all(row.get(column) is None or isinstance(row[column], str) for row in rows)
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(c)) for c in columns))
    Console(width=180).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_cell(v)}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else value if isinstance(value, str) else f"{value:,}"
