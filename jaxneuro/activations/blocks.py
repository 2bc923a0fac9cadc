# SPDX-License-Identifier: Apache-2.0
"""A store in random order at the speed of the disk: whole blocks are read, and rows of many blocks are mixed in memory.

Every row of an epoch in an order of its own would need one read per row: 1.5 KB each, and a checksummed store reads a
block for it. Measured on two cores, pages cached, rows of 768 bfloat16, plain reads of the files at 12 GB/s:

    single rows at random, blocks of 1 / 8 / 64 rows                     0.16 / 0.15 / 0.05 GB/s
    whole blocks at random, blocks of 64 / 256 / 1024 rows               1.2  / 2.2  / 3.4  GB/s

So blocks are shuffled, WINDOW of them form a window, and the rows of a window are shuffled. As the writer shuffles the
rows of SHARD_BLOCKS blocks before it writes them, two rows of a batch are from one text of T rows with probability

    T / n  +  (1 / WINDOW) T / (SHARD_BLOCKS block)          (the first term: an exact shuffle of all n rows)

With a batch of 4096 rows of texts of 256 tokens, blocks of 1024 rows: at most 0.25 others of its text per row, however
large the store. In the order of the texts it would be 255.

A store of at most WINDOW blocks is one window and shuffled exactly.
"""

import itertools
import math
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np

from .source import total_rows, widened
from .store import LABELS, Layout, dequantised, explained, open_array

WINDOW = 128
"""Blocks that are mixed: 256 MiB at most."""
IN_ORDER = 8
"""Blocks read together when rows are wanted in order."""
LANES = 16
"""Parts of a window, each shuffled by itself and read by one host: with one window for all, every host reads all."""
BEGIN = 8
"""The next window is read from when 1 / BEGIN of this one is used, so that batches that are late find theirs."""


class BlockOrder:
    """Where every place of every epoch lies: a pure function of (seed, epoch, place), exact over each epoch.

    The full blocks in an order drawn anew for each epoch are cut into windows; place p of a window is in lane p mod
    `lanes` of it, which has its own blocks and its own permutation of their rows. What is left, the last and partly
    filled block with it, is one more window with a single lane.

    Args:
      n, block: rows, and rows per block.
      seed: None: in order.
      lanes: of each window.
      window: blocks per window, at most (rounded up to a multiple of lanes).
    """

    def __init__(self, n: int, block: int, *, seed: int | None, lanes: int = 1, window: int = WINDOW):
        self.n, self.lanes, self._block, self._seed = n, lanes, block, seed
        blocks, self._full = -(-n // block), n // block
        self._window = -(-blocks // -(-blocks // window))  # windows of about equal sizes
        self._window += -self._window % lanes
        self.rows = self._window * block
        """Of a window with lanes."""
        self._whole = 0 if blocks <= self._window else self._full // self._window
        self._order = lru_cache(2)(self._shuffled_blocks)

    def _shuffled_blocks(self, epoch: int) -> np.ndarray:
        every = np.arange(self._full)
        return every if self._seed is None else np.random.default_rng([self._seed, epoch]).permutation(every)

    def locate(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (unit, place in it): a unit is a lane of a window of an epoch."""
        epoch, place = np.divmod(places, self.n)
        window = np.minimum(place // self.rows, self._whole)
        place = place - window * self.rows
        lane = np.where(window < self._whole, place % self.lanes, 0)
        within = np.where(window < self._whole, place // self.lanes, place)
        return (epoch * (self._whole + 1) + window) * self.lanes + lane, within

    def blocks(self, unit: int) -> np.ndarray:
        """int64: the blocks of a unit, in the order of their rows before these are shuffled."""
        window, lane = divmod(unit, self.lanes)
        epoch, window = divmod(window, self._whole + 1)
        order, each = self._order(epoch), self._window // self.lanes
        if window < self._whole:
            return order[window * self._window + lane * each :][:each]
        return np.append(np.sort(order[self._whole * self._window :]), np.arange(self._full, -(-self.n // self._block)))

    def shuffled(self, unit: int) -> np.ndarray | None:
        """int64: the row at each place of a unit; None: in order."""
        if self._seed is None:
            return None
        blocks = self.blocks(unit)
        rows = len(blocks) * self._block - (-self.n % self._block if blocks[-1] == self._full else 0)
        return np.random.default_rng([self._seed, *divmod(unit, self.lanes), 1]).permutation(rows)


class _Unit:
    """The rows of some blocks, on their way into memory.

    Args:
      free: number of rows -> buffers of units that nobody uses any more: fresh memory costs as much as the reading.
    """

    def __init__(self, folder: Path, arrays: dict, layout: Layout, blocks: np.ndarray, free: dict[int, list]):
        import tensorstore as ts

        rows = np.minimum((blocks + 1) * layout.block, layout.n) - blocks * layout.block
        ends = np.cumsum(rows).tolist()
        self._folder, self._free, self._reads = folder, free.setdefault(ends[-1], []), []
        try:
            self._columns = self._free.pop()
        except IndexError:
            kinds = layout.columns.items()
            self._columns = {name: np.empty((ends[-1], *shape), dtype) for name, (dtype, shape) in kinds}
        for block, end, n in zip(blocks.tolist(), ends, rows.tolist(), strict=True):
            first = block * layout.block
            for name, a in arrays.items():
                self._reads.append(ts.array(self._columns[name][end - n : end]).write(a[first : first + n]))

    def columns(self) -> dict[str, np.ndarray]:
        """When they are there. They are another unit's when this one is let go."""
        with explained(self._folder):
            for read in self._reads:
                read.result()
        self._reads = []
        return self._columns

    def __del__(self) -> None:
        for read in self._reads:
            read.exception()  # waits
        self._free.append(self._columns)


class Blocks:
    """A store as a `source.Source`: shuffled in blocks, the next window read while this one is used."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        seed: int | None,
        batch_size: int,
        *,
        epochs: int | None = None,
        ahead: int = 4,
        widen: bool = True,
    ):
        self.n, self.lanes = layout.n, 1 if seed is None else math.gcd(batch_size, LANES)
        wide = -(-BEGIN * ahead * batch_size // layout.block)  # so that batches in flight stay within 1 / BEGIN
        window = max(IN_ORDER if seed is None else WINDOW, wide)
        self._order = BlockOrder(layout.n, layout.block, seed=seed, lanes=self.lanes, window=window)
        self._folder, self._layout, self._widen, self._total = folder, layout, widen, total_rows(layout.n, epochs)
        self._arrays = {name: open_array(folder, layout, name) for name in layout.columns}
        self._units: OrderedDict[bytes, _Unit] = OrderedDict()
        self._free: dict[int, list] = {}
        self._lock = threading.Lock()
        self._shuffled = lru_cache(2 * self.lanes + 2)(self._order.shuffled)
        self._key = lru_cache(4 * self.lanes)(self._order.blocks)

    def read(self, places: np.ndarray) -> dict[str, np.ndarray]:
        units, within = self._order.locate(places)
        edges = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]
        out = {name: np.empty((len(places), *shape), dtype) for name, (dtype, shape) in self._layout.columns.items()}
        for a, b in itertools.pairwise(edges):
            unit, rows = int(units[a]), within[a:b]
            order = self._shuffled(unit)
            rows = rows if order is None else order[rows]
            held = self._unit(unit)
            for name, column in held.columns().items():
                np.take(column, rows, axis=0, out=out[name][a:b], mode="clip")
        self._begin(places[edges[:-1]] + self._order.rows * (BEGIN - 1) // BEGIN)
        return self._delivered(out)

    def _begin(self, places: np.ndarray) -> None:
        """Read what is about to be needed, in the background."""
        units, _ = self._order.locate(places[places < self._total])
        for unit in dict.fromkeys(units.tolist()):
            self._unit(unit)

    def _unit(self, unit: int) -> _Unit:
        """From memory where it is there; two windows are kept."""
        blocks = self._key(unit)
        with self._lock:
            found = self._units.pop(blocks.tobytes(), None) or _Unit(
                self._folder, self._arrays, self._layout, blocks, self._free
            )
            self._units[blocks.tobytes()] = found
            while len(self._units) > 2 * self.lanes:
                self._units.popitem(last=False)
        return found

    def _delivered(self, out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        labels = out.pop("labels")
        if self._widen:
            scale = out.pop("scale", None)
            out["x"] = widened(out["x"]) if scale is None else dequantised(out["x"], scale)
        return out | {name: np.ascontiguousarray(labels[:, i]) for i, name in enumerate(LABELS)}
