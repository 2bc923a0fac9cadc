# SPDX-License-Identifier: Apache-2.0
"""Worker processes with a limit of memory and of time each; one that dies or hangs is counted, killed and replaced."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from .judge import Record, one
from .seeds import Room

_START_S: Final = 120.0
"""For imports and whole examples before the first mutant."""
_MUTANTS: Final = 5000
"""Of one process: what a loader does not give back must not add up."""
_GRACE: Final = 3.0
"""Times the limit at which a process that does not listen to its own alarm is killed."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one worker."""

    timeout_s: float = 10.0
    memory_mb: int = 3000
    """Address space beyond what it has when it starts."""
    most: int | None = None
    """Cases of each kind."""


def environment() -> None:
    """What a process that loads mutants is started with: no network, no accelerator, quick compiles."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def work(pipe: Connection, seed: int, limits: Limits, folder: str) -> None:
    """A worker: numbers in, records out."""
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    warnings.simplefilter("ignore")
    room = Room(Path(folder))
    import jaxneuro

    jaxneuro.load("bundled")  # threads and compiler are there before memory is limited
    limit_memory(limits.memory_mb)
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while (i := pipe.recv()) is not None:
            try:
                record = one(
                    *(room, seed, i, Path(folder) / "mutants"),
                    timeout=limits.timeout_s,
                    most=limits.most,
                    told=lambda record: pipe.send({"about": record}),
                )
            except Exception:  # of the fuzzer itself: a mutant's are in its record
                record = {"failed": traceback.format_exc()}
            pipe.send(record)


def limit_memory(megabytes: int) -> None:
    """Of this process, beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class _Worker:
    def __init__(self, seed: int, limits: Limits):
        self.seed, self.limits = seed, limits
        self.folder = tempfile.mkdtemp(prefix="jaxneuro-fuzz-")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, seed, limits, self.folder), daemon=True)
        self.process.start()
        theirs.close()
        self.i: int | None = None
        self.given = 0
        self.about: Record | None = None
        self.deadline = time.monotonic() + _START_S

    def give(self, i: int, seconds: float) -> None:
        self.i, self.given, self.about = i, self.given + 1, None
        self.deadline = time.monotonic() + max(seconds, _START_S)  # whole examples first; `about` shortens it
        self.pipe.send(i)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(seed: int, numbers: Iterable[int], *, workers: int, limits: Limits, until: float) -> Iterator[Record]:
    """Records of these mutants, as they come, until a time of the monotonic clock.

    Raises:
      RuntimeError: the fuzzer itself fails, or its processes die before they load anything.
    """
    environment()
    ahead, pool = iter(numbers), [_Worker(seed, limits) for _ in range(workers)]
    try:
        while pool:
            for pipe in wait([w.pipe for w in pool], timeout=0.5):
                worker = next(w for w in pool if w.pipe is pipe)
                said = _heard(worker)
                if isinstance(said, dict) and "failed" in said:
                    raise RuntimeError(f"mutant {worker.i}: {said['failed']}")
                if isinstance(said, dict) and "about" in said:
                    worker.about, worker.deadline = said["about"], time.monotonic() + _GRACE * limits.timeout_s
                    continue
                if said != "ready":
                    yield said or _ended(worker, "crash")
                i = next(ahead, None) if time.monotonic() < until else None
                if said is None or i is None or worker.given == _MUTANTS:
                    _replaced(pool, worker, again=i is not None)
                    ahead = ahead if i is None else itertools.chain([i], ahead)  # given when the new one is ready
                else:
                    worker.give(i, _GRACE * limits.timeout_s)
            for worker in [w for w in pool if time.monotonic() > w.deadline]:
                yield _ended(worker, "hang")
                _replaced(pool, worker, again=time.monotonic() < until)
    finally:
        for worker in pool:
            worker.close()


def _replaced(pool: list[_Worker], worker: _Worker, *, again: bool) -> None:
    pool.remove(worker)
    worker.close()
    if again:
        pool.append(_Worker(worker.seed, worker.limits))


def _heard(worker: _Worker) -> Any:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        return None


def _ended(worker: _Worker, how: str) -> Record:
    """The record of a mutant whose process did not come back."""
    if worker.about is None:
        raise RuntimeError(f"a process did not come to load mutant {worker.i} ({how}).")
    code = worker.process.exitcode
    died = f"died of {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    detail = died if how == "crash" else "killed: it did not listen to its alarm"
    return {**worker.about, "outcome": how, "detail": detail, "ms": None}
