# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs: asked for by name, or the first that can."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

type Implementation = str | Sequence[str] | None
"""None: the first that can run. A name: that one or an error. A sequence: the first of these that can run."""


def _never(*_: Any, **__: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of an op."""

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = _never
    """(the op's arguments) -> why it cannot take them, or None. Asked before a launch, never after a failed one."""


def choose(op: str, backends: Mapping[str, Backend], implementation: Implementation, *args: Any, **kwargs: Any) -> str:
    """Name of the implementation that runs.

    Args:
      op: the op's name, for messages.
      backends: what there is, the preferred first.
      implementation: see `Implementation`.
      *args, **kwargs: the call, shown to each candidate's `refuses`.
    Raises:
      ValueError: a name that does not exist; an empty sequence.
      ExceptionGroup: of NotImplementedError, one reason per candidate, when none can take the call.
    Example:
      >>> choose("topk", {"xla": Backend(run=len)}, None)
      'xla'
    """
    if implementation is None:
        names = tuple(backends)
    else:
        names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not names:
        raise ValueError(f"{op}: implementation is an empty sequence. There are: {', '.join(backends)}.")
    for name in names:
        if name not in backends:
            near = difflib.get_close_matches(str(name), backends, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{op} has no implementation {name!r}.{meant} There are: {', '.join(backends)}.")
    reasons = []
    for name in names:
        reason = backends[name].refuses(*args, **kwargs)
        if reason is None:
            return name
        reasons.append(NotImplementedError(f"{op}: {name} cannot run here: {reason}"))
    raise ExceptionGroup(f"{op}: no implementation of {', '.join(names)} can take this call", reasons)
