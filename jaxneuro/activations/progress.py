# SPDX-License-Identifier: Apache-2.0
"""Progress for a person who waits: a bar in a terminal, plain lines in a file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO


class Progress(Protocol):
    """Called after every step; whoever draws decides how often."""

    def __call__(self, done: int, total: int | None, text: str) -> None:
        """`done` of `total` (None: unknown) steps, and the newest numbers as text."""
        ...


@contextlib.contextmanager
def rich_progress(title: str = "", *, file: TextIO | None = None, every_s: float = 10.0) -> Iterator[Progress]:
    """A progress bar with rate and time left for `run(..., progress=)`; one line every few seconds if not a terminal.

    Args:
      title: put in front.
      file: where to draw; standard error by default.
      every_s: least seconds between two lines when it is not a terminal.
    Example:
      >>> with rich_progress("learn", file=sys.stdout, every_s=0) as progress:
      ...     progress(2, 2, "loss 0.5")
      learn 2/2 loss 0.5
    """
    out = sys.stderr if file is None else file
    if not out.isatty():
        yield _lines(title, out, every_s, time.monotonic)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False)]
    with Bar(*columns, console=Console(file=out)) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(done: int, total: int | None, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield show


def _lines(title: str, file: TextIO, every_s: float, clock: Callable[[], float]) -> Progress:
    began, calls, shown = (0.0, 0), 0, clock()

    def show(done: int, total: int | None, text: str) -> None:
        nonlocal began, calls, shown
        now, calls = clock(), calls + 1
        if calls <= 2:  # the first step compiles: timed from its end
            began = (now, done)
        if done != total and now - shown < every_s:
            return
        shown = now
        rate = (done - began[1]) / (now - began[0]) if now > began[0] else 0.0
        left = f"{duration((total - done) / rate)} left" if total and rate and done < total else ""
        parts = [title, f"{done}/{total}" if total else str(done), left, text]
        print(" ".join(p for p in parts if p), file=file, flush=True)

    return show


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
      >>> duration(7), duration(125), duration(7300)
      ('7 s', '2 min 05 s', '2 h 01 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def quantity(x: float) -> str:
    """A rate or count with three digits and a unit prefix.

    Example:
      >>> quantity(950), quantity(12345), quantity(2.5e6)
      ('950', '12.3k', '2.5M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"
