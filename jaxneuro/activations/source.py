# SPDX-License-Identifier: Apache-2.0
"""Arrays as streams: every epoch an exact shuffle, computed where it is needed instead of stored."""

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from ..errors import UserError, shown

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


class Source(Protocol):
    """Rows in an order that is another one in every epoch: place p is row `p % n` of epoch `p // n`."""

    @property
    def n(self) -> int:
        """Rows of an epoch."""
        ...

    @property
    def lanes(self) -> int:
        """A batch is delivered as its places 0, lanes, 2 lanes ..., then 1, lanes + 1 ...: divides every batch size.
        Places that differ by a multiple of it lie together on the disk, and hosts take contiguous parts of batches."""
        ...

    def read(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Fresh arrays of the rows at places int64 [b]; called by several threads at once."""
        ...


class _Arrays:
    """Arrays in memory, or mapped from files: any order costs the same."""

    lanes = 1

    def __init__(self, arrays: Mapping[str, Any], n: int, seed: int | None, widen: bool, files: Mapping[Any, bool]):
        self._arrays, self.n, self._seed, self._widen = arrays, n, seed, widen
        self._files = [(file, timed, _state(file, timed)) for file, timed in files.items()]

    def read(self, places: np.ndarray) -> dict[str, np.ndarray]:
        for file, timed, before in self._files:
            if (now := _state(file, timed)) != before:
                raise UserError(
                    f"{shown(file, 400)} was changed while it was read: {before}, then {now}. Wait until it is "
                    "written, then run again."
                )
        epoch, row = np.divmod(places, self.n)
        if self._seed is not None:
            for e in np.unique(epoch):
                here = epoch == e
                row[here] = Shuffle(self.n, seed=self._seed, epoch=int(e))(row[here])
        found = {name: np.take(a, row, axis=0) for name, a in self._arrays.items()}
        return {name: widened(a) for name, a in found.items()} if self._widen else found


def _state(file: str | os.PathLike, timed: bool) -> str:
    """Size and time of the last change of a file, as messages say it."""
    try:
        found = os.stat(file)
    except OSError:
        return "gone"
    seconds, ns = divmod(found.st_mtime_ns, 10**9)
    return f"{found.st_size:,} bytes" + (f" of {time.strftime('%T', time.localtime(seconds))}.{ns:09}" if timed else "")


def widened(a: np.ndarray) -> np.ndarray:
    """bfloat16 and float16 as float32; anything else as it is."""
    return a.astype(np.float32) if a.dtype in (ml_dtypes.bfloat16, np.float16) else a


class _Batches:
    """Random access to batch number i of the endless sequence of shuffled epochs (a Grain data source)."""

    def __init__(self, source: Source, size: int, total: int, shard: tuple[int, int], drop: bool):
        self._source, self._size, self._total = source, size, total
        self._len = min(total // size if drop else -(-total // size), sys.maxsize // 2)
        index, count = shard
        j, per_lane = np.arange(index * size // count, (index + 1) * size // count), size // source.lanes
        self._places = j % per_lane * source.lanes + j // per_lane

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        places = int(index) * self._size + self._places
        mask = places < self._total
        batch = self._source.read(np.minimum(places, self._total - 1))
        if not mask.all():
            for values in batch.values():
                values[~mask] = 0
        return batch | {"mask": mask}


def total_rows(n: int, epochs: int | None) -> int:
    """Rows of all epochs; without end: more than anybody reads."""
    return sys.maxsize // 4 if epochs is None else n * epochs


def stream(
    source: Source, *, batch_size: int, epochs: int | None, shard: tuple[int, int], drop_remainder: bool, threads: int
) -> Any:
    """The batches of a source as a Grain iterator."""
    import grain

    total = total_rows(source.n, epochs)
    batches = _Batches(source, batch_size, total, shard, drop_remainder)
    if not len(batches):
        raise UserError(f"{total} rows do not fill one batch of {batch_size}, and drop_remainder leaves out the rest.")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


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
    widen: bool = True,
    file: str | os.PathLike | None = None,
) -> Any:
    """Batches of rows of an array (in memory or a memmap) as a Grain iterator, shuffled exactly in every epoch.

    Every run of `len(x)` rows is a new permutation of all rows; a batch may hold the end of one epoch and the start of
    the next, so no row is dropped between them. Any position is reached at once (`set_state`), and reading goes on in
    threads while the device works.

    Args:
      x: [n, ...].
      batch_size: rows of a batch over all shards.
      seed: of the shuffles; None: in order.
      epochs: how often; None: without end.
      extra: arrays with the same n rows, delivered beside x under their names.
      shard: (index, count) of this host. The shards of batch i together are batch i of a single host.
      drop_remainder: leave out the rows after the last whole batch; otherwise the last batch is filled up with zeros.
      threads: that read.
      widen: bfloat16 and float16 rows come out as float32; False: as they are.
      file: that the arrays are mapped from, where they are no `np.memmap`, which knows its own. Before every batch its
        size and time are compared with those at the start; a file that is cut within a batch ends the process (SIGBUS).
    Returns:
      Iterator of {"x": [b, ...], "mask": bool [b] (False: filler), ...extra}, with get_state() and set_state().
    Raises:
      UserError: no rows, unequal lengths, a batch size that the shards do not divide; later, a mapped file that was
        changed.
    Example:
      >>> batches = array_batches(np.arange(5), batch_size=2, epochs=1, seed=None)
      >>> [b["x"].tolist() for b in batches]
      [[0, 1], [2, 3], [4, 0]]
    """
    arrays = {name: np.asarray(a) if isinstance(a, jax.Array) else a for name, a in {"x": x, **(extra or {})}.items()}
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"arrays of one stream have equal numbers of rows, but these have {lengths}.")
    if "mask" in arrays:
        raise UserError("'mask' is the name of the filler mask: rename that array.")
    check_request(lengths["x"], batch_size, epochs, shard)
    # What is mapped to be written changes its time when the system writes it.
    mapped = {a.filename: a.mode == "r" for a in arrays.values() if isinstance(a, np.memmap) and a.filename}
    return stream(
        _Arrays(arrays, lengths["x"], seed, widen, mapped if file is None else {**mapped, file: True}),
        batch_size=batch_size,
        epochs=epochs,
        shard=shard,
        drop_remainder=drop_remainder,
        threads=threads,
    )


def check_request(n: int, batch_size: int, epochs: int | None, shard: tuple[int, int]) -> None:
    """Raises: UserError: no rows, or numbers that make no stream."""
    if not n:
        raise UserError("the array has no rows.")
    check_shard(shard)
    if batch_size < 1 or batch_size % shard[1]:
        raise UserError(f"batch_size {batch_size} is not a positive multiple of the {shard[1]} shards.")
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs is at least 1, or None for no end; not {epochs}.")


def check_shard(shard: tuple[int, int]) -> None:
    """Raises: UserError: not (index, count)."""
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"shard is (index, count) with 0 <= index < count, not {shard}.")
