# SPDX-License-Identifier: Apache-2.0
"""A run's numbers on their way from the device to the sink: copied while the next steps run, written one point late."""

import logging
import math
import time
from collections import Counter
from typing import Any

import jax
import numpy as np

from .identity import leaf_names
from .metrics import MetricSink, Rewindable
from .progress import Progress, quantity

SHOWN = 4
"""Values in the progress text; the sink gets all."""
_log = logging.getLogger("jaxneuro.run")


class Log:
    """Collects infos at log points. Never waits for the device except where it writes a point."""

    def __init__(self, sink: MetricSink | None, progress: Progress | None, every: int):
        self._sink, self._progress, self._every = sink, progress, every
        self._total: int | None = None
        self._last: tuple[int, Any] | None = None
        self._pending: tuple[int, Any] | None = None
        self._clock: float | None = None
        self._tokens, self._rate, self._text = 0, 0.0, ""
        self._bad: Counter[str] = Counter()

    def begin(self, done: int, total: int | None) -> None:
        """The run starts or goes on after `done` steps."""
        self._total = total
        self._show(done, "compiling")

    def step(self, done: int, info: Any, tokens: int) -> None:
        """Step number `done` was handed to the device."""
        self._last = (done, info)
        if self._clock is None:  # the first step compiled: not counted in the rate
            self._clock = time.monotonic()
        else:
            self._tokens += tokens
        if done % self._every == 0:
            self._point()
        self._show(done, self._text)

    def end(self, done: int) -> None:
        """The run is over: its last step is a log point."""
        if self._last is not None and done % self._every:
            self._point()
        self.flush()
        self._show(done, self._text)

    def position(self) -> int | None:
        """Write what is pending and return the sink's mark, for a checkpoint."""
        self.flush()
        return self._sink.position() if isinstance(self._sink, Rewindable) else None

    def _point(self) -> None:
        self.flush()
        if self._sink is None and self._progress is None:
            return
        self._pending = self._last
        for leaf in jax.tree.leaves(self._last):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()

    def flush(self) -> None:
        """Write the pending point."""
        if self._pending is None:
            return
        (step, info), self._pending = self._pending, None
        names = (name or "value" for name in leaf_names(info))
        values = {name: np.asarray(x).item() for name, x in zip(names, jax.tree.leaves(info), strict=True)}
        if self._sink is not None:
            self._sink.write(step, values)
        self._warn(step, values)
        self._text = self._sentence(values)

    def _warn(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                if not self._bad[name]:
                    _log.warning("%s is %s at step %d", name, value, step)
                self._bad[name] += 1

    def _sentence(self, values: dict[str, float]) -> str:
        now = time.monotonic()
        if self._tokens and self._clock is not None and now > self._clock:
            self._rate = self._tokens / (now - self._clock)
            self._tokens, self._clock = 0, now
        shown = ((name, value) for name, value in values.items() if name != "tokens")  # of one step: read as the total
        parts = [f"{name} {value:.4g}" for name, value in list(shown)[:SHOWN]]
        if self._rate:
            parts.append(f"{quantity(self._rate)} tokens/s")
        parts += [f"{name} not finite at {n} log points" for name, n in self._bad.items()]
        return ", ".join(parts)

    def _show(self, done: int, text: str) -> None:
        if self._progress is not None:
            self._progress(done, self._total, text)
