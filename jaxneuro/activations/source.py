# SPDX-License-Identifier: Apache-2.0
"""Arrays as streams: every epoch an exact shuffle, computed where it is needed instead of stored."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import UserError

ROUNDS = 8
"""Rounds of the Feistel network. 4 make a pseudo-random permutation of a random round function (Luby and Rackoff 1988,
doi:10.1137/0217022); twice that because ours is a 32-bit hash."""


class Shuffle:
    """A pseudo-random permutation of 0 .. n-1 whose value at any place costs the same: nothing is stored.

        place -> (l, r) in base ceil(sqrt n);  8 times (l, r) <- (r, (l + hash(r, round key)) mod base)
        and again while the result is >= n  (cycle walking)

    A bijection for every n and seed, so an epoch visits each row exactly once, with O(batch) memory and time, where
    a stored permutation of 10^9 rows would be 8 GB.

    Source: cycle walking, Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9; hash: MurmurHash3's finaliser.
    Example:
      >>> sorted(Shuffle(10, seed=0, epoch=3)(np.arange(10)).tolist())
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, n: int, *, seed: int, epoch: int = 0):
        self._n = n
        self._base = np.uint64(math.isqrt(max(n - 1, 0)) + 1)
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 row for each place."""
        out = self._once(places.astype(np.uint64))
        while (outside := out >= self._n).any():
            out[outside] = self._once(out[outside])
        return out.astype(np.int64)

    def _once(self, v: np.ndarray) -> np.ndarray:
        left, right = v // self._base, v % self._base
        for key in self._keys:
            left, right = right, (left + _hash(right ^ key)) % self._base
        return left * self._base + right


def _hash(v: np.ndarray) -> np.ndarray:
    """64-bit finaliser of MurmurHash3, its upper half: below 2^32, so that a sum with a half cannot overflow."""
    v = (v ^ v >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    v = (v ^ v >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return v >> np.uint64(32)


class _Batches:
    """Random access to batch number i of the endless sequence of shuffled epochs (a Grain data source)."""

    def __init__(self, arrays: Mapping[str, Any], n: int, size: int, seed: int | None, total: int, shard, drop: bool):
        self._arrays, self._n, self._size, self._seed = arrays, n, size, seed
        self._total, self._shard = total, shard
        self._len = min(total // size if drop else -(-total // size), sys.maxsize // 2)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        shard, shards = self._shard
        mine = self._size // shards
        places = int(index) * self._size + shard * mine + np.arange(mine, dtype=np.int64)
        mask = places < self._total
        rows = self._rows(np.where(mask, places, 0))
        batch = {name: _read(a, rows) for name, a in self._arrays.items()}
        if not mask.all():
            for values in batch.values():
                values[~mask] = 0
        return batch | {"mask": mask}

    def _rows(self, places: np.ndarray) -> np.ndarray:
        epoch, place = np.divmod(places, self._n)
        if self._seed is None:
            return place
        for e in np.unique(epoch):
            here = epoch == e
            place[here] = Shuffle(self._n, seed=self._seed, epoch=int(e))(place[here])
        return place


def _read(a: Any, rows: np.ndarray) -> np.ndarray:
    values = np.take(a, rows, axis=0) if isinstance(a, np.ndarray) else np.asarray(a[rows])
    return values.astype(np.float32) if values.dtype in (ml_dtypes.bfloat16, np.float16) else values


def array_batches(
    x: Any,
    *,
    batch_size: int,
    seed: int | None = 0,
    epochs: int | None = None,
    extra: Mapping[str, Any] | None = None,
    shard: tuple[int, int] = (0, 1),
    drop_remainder: bool = False,
    threads: int = 2,
) -> Any:
    """Batches of rows of an array (in memory or a memmap) as a Grain iterator, shuffled exactly in every epoch.

    Every run of `len(x)` rows is a new permutation of all rows; a batch may hold the end of one epoch and the start of
    the next, so no row is dropped between them. Any position is reached at once (`set_state`), and reading goes on in
    threads while the device works.

    Args:
      x: [n, ...]; bfloat16 and float16 rows come out as float32, anything else as it is.
      batch_size: rows of a batch over all shards.
      seed: of the shuffles; None: in order.
      epochs: how often; None: without end.
      extra: arrays with the same n rows, delivered beside x under their names.
      shard: (index, count) of this host. The shards of batch i together are batch i of a single host.
      drop_remainder: leave out the rows after the last whole batch; otherwise the last batch is filled up with zeros.
      threads: that read.
    Returns:
      Iterator of {"x": [b, ...], "mask": bool [b] (False: filler), ...extra}, with get_state() and set_state().
    Raises:
      UserError: no rows, unequal lengths, a batch size that the shards do not divide.
    Example:
      >>> batches = array_batches(np.arange(5), batch_size=2, epochs=1, seed=None)
      >>> [b["x"].tolist() for b in batches]
      [[0, 1], [2, 3], [4, 0]]
    """
    import grain

    arrays = {"x": x, **(extra or {})}
    n = _check(arrays, batch_size, epochs, shard)
    total = sys.maxsize // 4 if epochs is None else n * epochs
    source = _Batches(arrays, n, batch_size, seed, total, shard, drop_remainder)
    if not len(source):
        raise UserError(f"{total} rows do not fill one batch of {batch_size}, and drop_remainder leaves out the rest.")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def _check(arrays: Mapping[str, Any], batch_size: int, epochs: int | None, shard: tuple[int, int]) -> int:
    lengths = {name: len(a) for name, a in arrays.items()}
    n = lengths["x"]
    if not n:
        raise UserError("the array has no rows.")
    if len(set(lengths.values())) > 1:
        raise UserError(f"arrays of one stream have equal numbers of rows, but these have {lengths}.")
    if "mask" in arrays:
        raise UserError("'mask' is the name of the filler mask: rename that array.")
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"shard is (index, count) with 0 <= index < count, not {shard}.")
    if batch_size < 1 or batch_size % count:
        raise UserError(f"batch_size {batch_size} is not a positive multiple of the {count} shards.")
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs is at least 1, or None for no end; not {epochs}.")
    return n
