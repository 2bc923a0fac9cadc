# SPDX-License-Identifier: Apache-2.0
"""How fast a stored set of activations is read back in random order, beside what the disk and its cache can do."""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxneuro.activations.store import Layout, open_activations, verify
from jaxneuro.activations.writer import Writer

from .harness import cores, ratio

N, D, BATCH = 1_000_000, 768, 4096
"""1.55 GB: GPT-2's width, in bfloat16."""
READ = 2**20
"""Bytes of one plain read."""


def write(path: Path, layout: Layout) -> None:
    """A store of noise."""
    writer, rng = Writer(path, {"made by": "benchmarks.store"}, layout), np.random.default_rng(0)
    some = rng.standard_normal((layout.shard, layout.d), np.float32).astype(layout.dtype)
    for first in range(0, layout.n, layout.shard):
        rows = np.arange(first, min(first + layout.shard, layout.n), dtype=np.int32)
        writer.append({"x": some[: len(rows)], "window": rows // 256, "pos": rows % 256, "group": rows % 9})
    writer.finish()
    writer.close()


def files(path: Path) -> list[Path]:
    """Those with rows in them."""
    return sorted(p for p in path.rglob("c/**/*") if p.is_file())


def forget(path: Path) -> None:
    """Drop the files from the page cache."""
    for file in files(path):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def plain(path: Path, threads: int) -> int:
    """Bytes of all files, read in order into one buffer per thread, unchecked: what no reader can exceed."""

    def some(mine: list[Path]) -> int:
        buffer, total = bytearray(READ), 0
        for file in mine:
            fd, at = os.open(file, os.O_RDONLY), 0
            while n := os.preadv(fd, [buffer], at):
                at += n
            os.close(fd)
            total += at
        return total

    every = files(path)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(some, [every[i::threads] for i in range(threads)]))


def batches(path: Path, threads: int, epochs: int = 1, **options) -> int:
    """Bytes of x, as stored, in shuffled batches with their labels; every block's checksum is compared each time."""
    acts = open_activations(path)
    stream = acts.batches(batch_size=BATCH, epochs=epochs, threads=threads, **options)
    rows = sum(int(batch["mask"].sum()) for batch in stream)
    if rows != epochs * len(acts):
        raise RuntimeError(f"{rows} rows came of {epochs} x {len(acts)}")
    return rows * acts.layout.d * np.dtype(acts.layout.dtype).itemsize


def rows(repeats: int) -> list[dict]:
    """Warm: all pages cached. Cold: none. The limit of each is measured between the other programs."""
    layout, threads = Layout.of(N, D, "bfloat16"), cores()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts"
        started = time.perf_counter()
        write(path, layout)
        written = (time.perf_counter() - started) * 1e3
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        shape = {"n": N, "d": D, "batch": BATCH, "threads": threads, "size / predicted": size / layout.n_bytes()}
        programs: dict[str, Callable[[], int]] = {
            "plain reads": lambda: plain(path, threads),
            "verify": lambda: verify(path),
            "batches, bfloat16": lambda: batches(path, threads, widen=False),
            "batches, float32": lambda: batches(path, threads),
        }
        steady = {"batches, bfloat16, 4 epochs": lambda: batches(path, threads, 4, widen=False)}
        found = [_row("write", [written], layout.n_bytes(), shape)]
        for state, before in (("warm", lambda: None), ("cold", lambda: forget(path))):
            if state == "warm":
                plain(path, threads)
            times, these = (repeats, programs | steady) if state == "warm" else (min(repeats, 3), programs)
            found += _measured(these, f", {state}", before, times, shape)
    return found


def _measured(programs: dict, suffix: str, before: Callable, repeats: int, shape: dict) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in programs}
    n_bytes = dict.fromkeys(programs, 0)
    for _ in range(repeats):
        for name, program in programs.items():
            before()
            started = time.perf_counter()
            n_bytes[name] = program()
            times[name].append((time.perf_counter() - started) * 1e3)
    found = [_row(name + suffix, times[name], n_bytes[name], shape) for name in programs]
    limit = found[0]["GB/s"]
    return [row | {"GB/s / plain reads": ratio(row["GB/s"], limit)} for row in found]


def _row(op: str, times: list[float], n_bytes: int, shape: dict) -> dict:
    p20, p50, p80 = (round(float(q), 4) for q in np.percentile(times, [20, 50, 80]))
    numbers = {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "GB/s": round(n_bytes / p50 / 1e6, 3)}
    return {"op": op, "shape": shape, "dtype": str(np.dtype(ml_dtypes.bfloat16)), **numbers}
