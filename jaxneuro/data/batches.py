# SPDX-License-Identifier: Apache-2.0
"""Batches of windows: a Grain pipeline that is deterministic, resumable, and shared out between hosts."""

import functools
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import UserError
from .paired import Paired
from .picture_rows import PictureRows
from .subset import Subset
from .windows import Windows

if TYPE_CHECKING:
    import grain

READ_THREADS: Final = 1  # assembles the next batch while the device computes; more only compete for the GIL
READ_AHEAD: Final = 2
# Grain shuffles with a 16-bit cipher that it repeats until the number fits: 3 ms per row at 12 rows, 8 us from 2^16 on.
# Below that a table of the epoch's order is small and made at once.
TABLE_ROWS: Final = 1 << 16

type Batch = dict[str, np.ndarray]
"""tokens int32 [B, T]; mask, counted bool [B, T]; group int32 [B]; window int32 [B], -1 for filler rows."""


def batches(
    windows: Windows | Subset | Paired | PictureRows,
    *,
    batch_size: int,
    seed: int | None = None,
    epochs: int | None = 1,
    shard: tuple[int, int] = (0, 1),
    drop_remainder: bool = False,
) -> "grain.DatasetIterator[Any]":
    """An iterator of batches, all of one shape, with `get_state()` and `set_state(state)`.

    A state restored into an iterator made with the same arguments gives bitwise the rest of the stream. Shards are
    disjoint, together they cover every window once per epoch, and all have the same number of batches (hosts that
    step together must). The last batches of an epoch are filled with rows whose mask is False everywhere and whose
    window is -1; statistics that respect masks see each window exactly once.

    Args:
      batch_size: rows per batch of this shard; over all hosts it is n times that.
      seed: shuffle anew in every epoch, the same on every host; None keeps the order of `windows`.
      epochs: how often to go through; None never ends.
      shard: (i, n): this is host i of n.
      drop_remainder: leave the rows out that do not fill a batch on every shard, instead of filling up.
    Raises:
      UserError: numbers out of range, or nothing left to iterate.
    Example:
      stream = batches(rows, batch_size=32, seed=0)
      first, state = next(stream), stream.get_state()
      later = batches(rows, batch_size=32, seed=0)
      later.set_state(state)  # next(later) is next(stream), bitwise
    """
    rows, per_step = len(windows), batch_size * shard[1]
    _check(rows, batch_size, seed, epochs, shard)
    if drop_remainder and rows < per_step:
        raise UserError(
            f"{rows} windows do not fill one batch of {batch_size} on {shard[1]} shard(s), and drop_remainder leaves "
            f"none. Use a smaller `batch_size` or drop_remainder=False."
        )
    import grain

    # The pipeline carries row numbers, which are cheap; rows are put together once per batch.
    order: Any = grain.MapDataset.range(rows)
    if seed is not None:
        order = _shuffled(order, seed)
    if drop_remainder:
        order = order[: rows - rows % per_step]
    elif fillers := -rows % per_step:
        order = grain.MapDataset.concatenate([order, grain.MapDataset.range(rows, rows + fillers)])
    numbers = order[shard[0] :: shard[1]].batch(batch_size, batch_fn=np.array).repeat(epochs)
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    stream: Any = numbers.map(windows.rows).to_iter_dataset(options)
    iterator: Any = iter(stream)
    return iterator


def _shuffled(order: Any, seed: int) -> Any:
    rows = len(order)
    if rows >= TABLE_ROWS:
        return order.seed(seed).shuffle()

    @functools.lru_cache(maxsize=2)  # the epoch being read and the next, which reading ahead has begun
    def table(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(rows)

    # Positions go on counting through the epochs, so they say which epoch it is.
    return order.map_with_index(lambda position, _: table(position // rows)[position % rows])


def _check(rows: int, batch_size: int, seed: int | None, epochs: int | None, shard: tuple[int, int]) -> None:
    if batch_size < 1 or (epochs is not None and epochs < 1):
        raise UserError(f"batch_size={batch_size}, epochs={epochs}: both must be at least 1 (epochs may be None).")
    if not 0 <= shard[0] < shard[1]:
        raise UserError(f"shard={shard}: give (i, n) with 0 <= i < n, for host i of n.")
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: it must be between 0 and 2**32 - 1, or None for no shuffling.")
    if not rows:
        raise UserError("there are no windows to iterate over.")
