# SPDX-License-Identifier: Apache-2.0
"""Progress for a person who waits: a bar in a terminal, plain lines in a file."""

import contextlib
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from ..console import is_quiet


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
    if is_quiet():
        yield lambda done, total, text: None
        return
    if not out.isatty():
        yield _lines(title, out, every_s, time.monotonic)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("{task.fields[left]}"), TextColumn("{task.fields[text]}", markup=False)]
    with Bar(*columns, console=Console(file=out)) as bar:
        task, pace = bar.add_task(title, total=None, text="", left=""), Pace(time.monotonic)

        def show(done: int, total: int | None, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text, left=pace.left(done, total))

        yield show


class Pace:
    """How long the rest takes, from the steps done lately; nothing while that is not known.

    Compiling takes as long as hundreds of steps and happens at the first ones and wherever a shape is new. So the first
    two calls are not timed, two more are needed, and an interval of more than ten times the usual one is left out.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock, self._calls, self._before = clock, 0, (0.0, 0)
        self._intervals: deque[tuple[float, int]] = deque(maxlen=50)

    def left(self, done: int, total: int | None) -> str:
        """ "2 min 05 s left", or "" ."""
        now, (then, count) = self._clock(), self._before
        self._calls, self._before = self._calls + 1, (now, done)
        if self._calls > 2 and done > count:
            self._intervals.append((now - then, done - count))
        if not total or done >= total or len(self._intervals) < 2:
            return ""
        usual = statistics.median_low(seconds / steps for seconds, steps in self._intervals)
        kept = [(seconds, steps) for seconds, steps in self._intervals if seconds <= 10 * usual * steps]
        each = sum(seconds for seconds, _ in kept) / sum(steps for _, steps in kept)
        return f"{duration((total - done) * each)} left"


def _lines(title: str, file: TextIO, every_s: float, clock: Callable[[], float]) -> Progress:
    shown, last, pace = clock(), "", Pace(clock)

    def show(done: int, total: int | None, text: str) -> None:
        nonlocal shown, last
        left = pace.left(done, total)
        if done != total and clock() - shown < every_s:
            return
        parts = [title, f"{done}/{total}" if total else str(done), left, text]
        line = " ".join(p for p in parts if p)
        if line == last:  # the end is often told twice
            return
        shown, last = clock(), line
        print(line, file=file, flush=True)

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
