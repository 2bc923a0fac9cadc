# SPDX-License-Identifier: Apache-2.0
"""A stream seen from the driver: two batches ahead on the device, one shape for all, able to go back."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ..errors import UserError
from .identity import describe, differences, table

AHEAD = 2
"""Batches placed before they are needed: one being used, one arriving."""

type Place = Callable[[Any], Any]


class Feed:
    """Reads batches, checks that they all have the first one's shapes, and places them ahead of use.

    Args:
      stream: an iterable of batches (pytrees of arrays). With `get_state` and `set_state` on its iterator (Grain's
        have them) it continues exactly where it was; otherwise a resumed run reads and drops what had been used.
      place: host batch -> device batch, without blocking.
    Raises:
      UserError: no batch at all.
    """

    def __init__(self, stream: Iterable[Any], place: Place):
        self._iterator: Iterator[Any] = iter(stream)
        self._exact = hasattr(self._iterator, "get_state") and hasattr(self._iterator, "set_state")
        self._place, self._ready, self.ended = place, deque(), False
        start: Any = self._iterator.get_state() if self._exact else None  # type: ignore[attr-defined]
        first = next(self._iterator, None)
        if first is None:
            raise UserError("the stream holds no batch: there is nothing to run over. Is the data empty, or used up?")
        _check_numbers(first)
        self._first, self._form, self._shapes = first, _form(first), table(first)
        self.read = 0
        """Batches taken from the stream since its very beginning, over all runs."""
        if self._exact:
            self._iterator.set_state(start)  # type: ignore[attr-defined]
        self._put_back = None if self._exact else first

    def sample(self) -> Any:
        """The first batch, placed."""
        return self._place(self._first)

    @property
    def shapes(self) -> dict[str, str]:
        """dtype and shape of every leaf of a batch."""
        return self._shapes

    @property
    def waiting(self) -> int:
        """Batches read and not yet taken."""
        return len(self._ready)

    def take(self, until: float = math.inf) -> tuple[Any, int] | None:
        """The next batch on the device and its number of tokens; None at the end (or at batch number `until`)."""
        while len(self._ready) < AHEAD and self.read < until and not self.ended:
            batch = self._next()
            if batch is None:
                self.ended = True
            else:
                self.read += 1
                self._ready.append((self._place(self._checked(batch, self.read)), count_tokens(batch)))
        return self._ready.popleft() if self._ready else None

    def state(self) -> Any:
        """The stream's own state; only right when nothing is waiting."""
        return self._iterator.get_state() if self._exact else None  # type: ignore[attr-defined]

    def resume(self, read: int, state: Any) -> None:
        """Go to where `read` batches had been used.

        Raises:
          UserError: the stream is shorter than that, or its state is not one of its kind.
        """
        if self._exact:
            try:
                self._iterator.set_state(state)  # type: ignore[attr-defined]
            except Exception as e:
                raise UserError(
                    f"the stream does not accept the state in the checkpoint ({type(e).__name__}: {e}): is it the "
                    f"same data, in the same order, read in the same way?"
                ) from e
        else:
            for n in range(read):
                if self._next() is None:
                    raise UserError(f"the checkpoint is {read} batches into the stream, but it has only {n} now.")
        self.read = read

    def _next(self) -> Any:
        if self._put_back is not None:
            first, self._put_back = self._put_back, None
            return first
        return next(self._iterator, None)

    def _checked(self, batch: Any, number: int) -> Any:
        form = _form(batch)
        if form != self._form:
            lines = differences(self._shapes, table(batch)) or ["another tree structure"]
            raise UserError(
                f"batch {number} differs from the first one (there: first, here: this one): {'; '.join(lines)}. One "
                f"compiled step needs one shape: drop the remainder, or pad it and say so in a mask."
            )
        return batch


def _form(batch: Any) -> Any:
    """Structure, shapes and dtypes, to compare quickly."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, [(np.shape(x), getattr(x, "dtype", type(x))) for x in leaves]


def _check_numbers(batch: Any) -> None:
    bad = [n for n, s in table(batch).items() if "[" not in s or s.startswith(("object", "<U", "|S"))]
    if bad:
        raise UserError(f"the batches hold something that is no array of numbers: {', '.join(bad)}.")


def count_tokens(batch: Any) -> int:
    """Tokens in a host batch, for rates: what a mask counts if there is one, else rows of `x`, else the first leaf.

    Example:
      >>> count_tokens({"tokens": np.zeros((2, 8)), "counted": np.ones((2, 8), bool)})
      16
    """
    if isinstance(batch, Mapping):
        for name in ("counted", "mask"):
            if isinstance(batch.get(name), np.ndarray):
                return int(np.count_nonzero(batch[name]))
        if "tokens" in batch:
            return int(np.prod(batch["tokens"].shape))
        if "x" in batch:
            return int(batch["x"].shape[0])
    leaves = jax.tree.leaves(batch)
    return int(leaves[0].shape[0]) if leaves and np.ndim(leaves[0]) else 1


def placer(sharding: jax.sharding.Sharding | None, everywhere: jax.sharding.Sharding | None) -> Place:
    """How a host batch gets to the device(s), leaf by leaf.

    Args:
      sharding: of the leading (batch) axis of every leaf; with several hosts each gives its own part.
      everywhere: replicated over the same devices, for leaves without axes and when there is no `sharding`.
    """
    if sharding is None:
        return lambda batch: jax.device_put(batch, everywhere)
    several = jax.process_count() > 1

    def leaf(x: Any) -> Any:
        if not np.ndim(x):
            return jax.device_put(x, everywhere)
        if several:
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))
        try:
            return jax.device_put(x, sharding)
        except ValueError as e:
            raise UserError(f"a batch leaf {describe(x)} cannot be laid out as {sharding}: {e}") from e

    return lambda batch: jax.tree.map(leaf, batch)
