# SPDX-License-Identifier: Apache-2.0
"""What a command says while it works: on standard error, and nothing where it was asked to be quiet."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quietly(yes: bool = True) -> Iterator[None]:
    """Inside, `say` and `rich_progress` are silent; results and errors are printed as ever."""
    token = _quiet.set(yes)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether progress is unwanted."""
    return _quiet.get()


def say(text: str) -> None:
    """One line for the person who waits.

    Example:
      >>> with quietly():
      ...     say("loading")
    """
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)
