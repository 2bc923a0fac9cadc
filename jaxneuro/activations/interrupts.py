# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM held back until a step boundary, so that a checkpoint can be written first."""

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Held:
    """Note the first SIGINT or SIGTERM after `hold()` instead of acting on it; raise it again at the block's end.

    A second signal acts at once, as if nothing were held (for a person who cannot wait for the step). Outside the
    main thread Python allows no handlers: nothing is held there.

    Example:
      >>> try:
      ...     with Held() as signals:
      ...         signals.hold()
      ...         signal.raise_signal(signal.SIGINT)
      ...         print("caught", signals.caught == signal.SIGINT)
      ... except KeyboardInterrupt:
      ...     print("raised again")
      caught True
      raised again
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """From here on."""
        if threading.current_thread() is threading.main_thread():
            handlers = {s: signal.getsignal(s) for s in _SIGNALS}
            # None: installed from C, Python could not put it back
            self._before = {s: h for s, h in handlers.items() if h is not None}
            for s in self._before:
                signal.signal(s, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._restore()

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
        self._before = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._restore()
        if self.caught is not None and kind is None:
            signal.raise_signal(self.caught)
