# SPDX-License-Identifier: Apache-2.0
"""The one loop that every learner runs in: compiled once, fed ahead, logged late, resumed exactly."""

import contextlib
import copy
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from ..errors import UserError, shown
from ..protocols import Method, State
from .checkpoint import Checkpoints, shapes
from .feed import Feed, placer
from .identity import describe, fingerprint, key_name, table
from .interrupts import Held
from .lock import exclusive
from .log import Log
from .metrics import MetricSink, Rewindable, open_sink
from .placement import compiled, everywhere, own, placed
from .progress import Progress

IN_FLIGHT = 2
"""Steps handed to the device and not yet done: enough to keep it busy, and bounds the memory of waiting batches."""
SAVE_SECONDS = 300.0
"""Time between checkpoints when no number of steps is given: what a crash may cost."""
_log = logging.getLogger(__name__)


def run(
    method: Method,
    stream: Iterable[Any],
    *,
    key: jax.Array,
    constants: Mapping[str, Any] | None = None,
    steps: int | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    metrics: MetricSink | str | os.PathLike | None = None,
    progress: Progress | None = None,
    log_every: int = 20,
    sharding: jax.sharding.Sharding | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Any:
    """Run a method over a stream and return what it finishes with.

        state = method.init(key, first batch);  state, info = method.step(state, batch) for every batch;
        return method.finish(state)

    The step is compiled once and its state donated. Batches are on the device two steps ahead; nothing is copied
    back between log points, and a log point's numbers are written one log point later, when they have arrived.

    With `checkpoint_dir` the run saves itself (state, position in the stream, position in the metrics) and a repeated
    call goes on from the last whole checkpoint: killed at any moment, the final state, result and JSON-lines metrics
    are bitwise those of a run that was never interrupted, on the same number of devices, as long as the stream repeats
    itself. Ctrl-C and SIGTERM first save, then act. A finished run that is called again only restores and finishes.

    Args:
      method: the three functions; see `jaxneuro.protocols.Method`.
      stream: iterable of batches of one shape. A Grain iterator (or anything with get_state and set_state) is
        continued where it was; any other is read again from its start and must repeat itself.
      key: for `method.init`.
      constants: merged into every (dict) batch, as arguments of the compiled step: weights, masks, tables. Never
        donated, never copied.
      steps: stop after so many in all; None: when the stream ends.
      checkpoint_dir: folder of this run alone; made if need be.
      checkpoint_every: in steps; None: about every five minutes (several hosts: every 1,000 steps). Always also at
        the end and on interruption.
      metrics: file for JSON lines, or a `MetricSink`. A file is emptied when a run starts anew.
      progress: called after every step; see `rich_progress`.
      log_every: steps between log points. The last step of a run is always one.
      sharding: of the batch axis; state and constants that lie on one device are then replicated over its devices.
      identity: anything JSON-like that must be equal for a resume to be right (configuration, data fingerprint). Shapes
        of state, batches and constants, the constants' values and the key are compared in any case.
    Raises:
      UserError: empty stream; batches of unequal shape; a step that changes its state's shapes; an info that is not a
        scalar; a checkpoint of another run, with what differs; a folder in use by another run; no room on the disk.
    Source: donation, asynchronous dispatch and copies as in JAX's own guides.
    Example:
      >>> import jax, jax.numpy as jnp
      >>> total = Method(
      ...     init=lambda key, batch: jnp.zeros(()),
      ...     step=lambda state, batch: (state + batch["x"].sum(), {"total": state}),
      ...     finish=float,
      ... )
      >>> run(total, [{"x": jnp.ones(3)}, {"x": jnp.ones(3)}], key=jax.random.key(0))
      6.0
    """
    _check_method(method)
    _check_arguments(steps, checkpoint_every, log_every)
    with Held() as signals, contextlib.ExitStack() as stack:  # signals outermost: raised again when all is closed
        if checkpoint_dir is not None and jax.process_index() == 0:
            stack.enter_context(exclusive(checkpoint_dir))
        spread = everywhere(sharding, constants)
        fixed = placed(dict(constants or {}), spread)
        feed = Feed(stream, placer(sharding, spread))
        state = _start(method, key, _with(feed.sample(), fixed), spread)
        step = compiled(method.step, state)
        checkpoints, done = None, None
        if checkpoint_dir is not None:
            asked = _identity(identity, key, state, feed, fixed)
            checkpoints = Checkpoints(Path(checkpoint_dir), asked)
            stack.callback(checkpoints.close)
            done = checkpoints.latest()
        sink = open_sink(metrics) if jax.process_index() == 0 else None
        if sink is not None:
            stack.callback(sink.close)
        if checkpoints and done is not None:
            like, state = shapes(state), None  # frees the fresh state before the saved one is read
            state = _resume(checkpoints, done, like, feed, sink, steps)
        elif isinstance(sink, Rewindable):
            sink.rewind(None, 0)
        if checkpoints and jax.process_count() == 1:  # several hosts would stop at different steps
            signals.hold()
        log = Log(sink, progress, log_every)
        state = _Loop(step, fixed, feed, steps, checkpoints, checkpoint_every, signals, log).run(state, done)
    if signals.caught is not None:  # and whoever handles the signal let it pass: there is no result to return
        raise KeyboardInterrupt
    return method.finish(state)


def _start(method: Method, key: jax.Array, sample: Any, spread: Any) -> State:
    state = method.init(key, sample)
    return own(state, spread or everywhere(None, state), borrowed=(sample, key))


class _Loop:
    """Steps until the end of the stream, `steps`, or a signal; saves where asked."""

    def __init__(self, step, constants, feed, steps, checkpoints, every, signals, log):
        self._step, self._constants, self._feed, self._log = step, constants, feed, log
        self._end = math.inf if steps is None else steps
        self._checkpoints, self._signals = checkpoints, signals
        self._every = every or (1000 if jax.process_count() > 1 else None)
        self._saved_at = time.monotonic()
        self._saved: int | None = None

    def run(self, state: State, resumed: int | None) -> State:
        self._saved, done = resumed, resumed or 0
        self._log.begin(done, None if self._end == math.inf else int(self._end))
        running: deque[jax.Array] = deque()
        while done < self._end:
            due = self._due(done) and not self._feed.waiting
            place = copy.deepcopy(self._feed.state()) if due else None
            item = self._feed.take(self._limit(done))
            if item is None:
                break  # the end, saved below with its last log line
            if due:
                self._save(state, done, place)
                if self._signals.caught is not None:
                    return state
            batch, tokens = item
            state, info, tick = self._step(state, batch, self._constants)
            done += 1
            running.append(tick)
            if len(running) > IN_FLIGHT:
                running.popleft().block_until_ready()
            self._log.step(done, info, tokens)
        if done < self._end < math.inf:
            _log.warning("the stream ended after %d of %d steps", done, self._end)
        self._log.end(done)
        self._save(state, done, self._feed.state())
        return state

    def _due(self, done: int) -> bool:
        if self._checkpoints is None:
            return False
        if self._signals.caught is not None:
            return True
        if done in (0, self._saved):
            return False
        if self._every:
            return done % self._every == 0
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    def _limit(self, done: int) -> float:
        """How far the stream may be read: not past the next save, so that its state then is the state of that step."""
        if self._due(done) and self._feed.waiting:
            return 0
        if self._checkpoints is None or not self._every:
            return self._end
        return min(self._end, (done // self._every + 1) * self._every)

    def _save(self, state: State, done: int, place: Any) -> None:
        if self._checkpoints is not None and done != self._saved:
            self._checkpoints.save(done, state, {"stream": place, "metrics": self._log.position()})
        self._saved, self._saved_at = done, time.monotonic()


def _resume(
    checkpoints: Checkpoints, done: int, like: Any, feed: Feed, sink: MetricSink | None, steps: int | None
) -> State:
    if steps is not None and done > steps:
        raise UserError(
            f"the checkpoint in {checkpoints.folder} is of step {done}, past the {steps} steps asked for. Ask for at "
            f"least {done}, or choose another folder."
        )
    meta = checkpoints.meta(done)
    feed.resume(done, meta["stream"])
    if isinstance(sink, Rewindable):
        sink.rewind(meta["metrics"], done)
    return checkpoints.restore(done, like)


def _identity(
    identity: Mapping[str, Any] | None, key: jax.Array, state: State, feed: Feed, constants: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "config": dict(identity or {}),
        "key": key_name(key),
        "state": table(state),
        "batch": feed.shapes,
        "constants": table(constants) | {"(values)": fingerprint(constants)},
    }


def _with(batch: Any, constants: Mapping[str, Any]) -> Any:
    if not constants:
        return batch
    if not isinstance(batch, Mapping):
        raise UserError(f"constants are merged into dict batches; this stream's are {describe(batch)}.")
    both = sorted(batch.keys() & constants.keys())
    if both:
        raise UserError(f"{', '.join(map(repr, both))}: in the batches and in the constants. Rename one of them.")
    return {**batch, **constants}


def _check_method(method: Any) -> None:
    if not all(callable(getattr(method, name, None)) for name in Method._fields):
        name = getattr(method, "__name__", "")
        hint = f" Call it with its settings first: run({name}(...), ...)." if name and callable(method) else ""
        what = name or shown(method)
        raise UserError(f"run: {what} is not a Method, which has three functions, init, step and finish.{hint}")


def _check_arguments(steps: int | None, every: int | None, log_every: int) -> None:
    for name, value in (("steps", steps), ("checkpoint_every", every), ("log_every", log_every)):
        if value is not None and value < 1:
            raise UserError(f"{name} counts steps and is at least 1, not {value}.")
