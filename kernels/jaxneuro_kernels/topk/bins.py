# SPDX-License-Identifier: Apache-2.0
"""Selection on a TPU, which cannot sort in a kernel: a row is cut into tiles, and column c of each feeds bin c.

    insert    a bin keeps its few best (key, tile), best first, and the key of the best it dropped; all elementwise
    best      k times: the best of all bins' heads (ties: the lowest index), and that bin moves up

Wrong only if a bin holds more of a row's k best than it keeps. Such a row is known: the head of an exhausted bin is
what it dropped, and in the end that ranks no lower than the last one chosen. It gets indices of -1, and `repaired`
computes its block of rows in another way.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .order import LOWEST

LANES: Final = 128
VMEM_BYTES: Final = 56 << 20
"""What a kernel may take: of 128 MiB on v5e and v6e, 64 on v5p and v7x."""
BINS: Final = (256, 512, 1024, 2048)
MOST_LEVELS: Final = 8
REPAIR_ROWS: Final = 256
"""Rows that are computed again together."""
_REPAIRS: Final = 0.1
"""Rows expected to be wrong in a call, at most."""
_AT_ONCE: Final = 64
"""Rows whose best are found together, to overlap the reductions over lanes."""
_PIECE: Final = 32
"""Rows that go through all levels of their bins together: few registers, and four times fewer operations to trace."""
_ABOVE: Final = 2**31 - 1


class Plan(NamedTuple):
    """Shape of the bins."""

    bins: int
    levels: int

    @property
    def row_bytes(self) -> int:
        """Memory of one row's bins.

        Example:
          >>> Plan(512, 4).row_bytes
          18432
        """
        return 4 * self.bins * (2 * self.levels + 1)


def levels_for(k: int, tokens: int, bins: int) -> int | None:
    """Fewest that a bin has to keep: tokens * C(k, levels + 1) / bins^levels rows are expected to need more.

    Example:
      >>> levels_for(32, 8192, 512), levels_for(128, 8192, 512), levels_for(4096, 8192, 512)
      (4, 6, None)
    """
    for m in range(1, MOST_LEVELS + 1):
        if tokens * math.comb(k, m + 1) <= _REPAIRS * bins**m:
            return m
    return None


def plan(n: int, k: int, tokens: int, among: Sequence[int] = BINS) -> Plan | None:
    """The cheapest bins for rows of n, or None: 5 operations per element and level, 6 per bin, level and choice.

    Example:
      >>> plan(131072, 32, 8192), plan(131072, 64, 8192), plan(1000, 8, 64)
      (Plan(bins=512, levels=4), Plan(bins=1024, levels=4), None)
    """
    fitting = [Plan(b, m) for b in among if n % b == 0 and (m := levels_for(k, tokens, b)) is not None]
    return min(fitting, key=lambda p: p.levels * (5 * n + 6 * k * p.bins)) if fitting else None


def refuses_bins(n: int, k: int, tokens: int) -> str | None:
    """Why there is no plan, or None."""
    if n % BINS[0]:
        return f"rows of {n} are no multiple of {BINS[0]}"
    if plan(n, k, tokens) is None:
        return f"k = {k} of {n}: a bin would have to keep more than {MOST_LEVELS}"
    return None


def block_rows(tokens: int, most: int) -> int:
    """Rows per block: equal blocks of at most `most`, in units of 256, or one power of two.

    Example:
      >>> block_rows(8192, 1024), block_rows(1100, 1024), block_rows(100, 1024)
      (1024, 768, 128)
    """
    unit = min(256, max(16, 1 << (tokens - 1).bit_length()))
    blocks = -(-tokens // most)
    return -(-tokens // (blocks * unit)) * unit


def padded(k: int) -> int:
    """Lanes that k results take."""
    return -(-k // LANES) * LANES


def state(rows: int, shape: Plan) -> list[Any]:
    """Scratch of a block of rows: keys (the last level is what was dropped), tiles, and how many of a bin are taken."""
    bins, levels = shape
    wanted = (levels + 1, rows, bins), (levels, rows, bins), (math.gcd(rows, _AT_ONCE), bins)
    return [pltpu.VMEM(s, jnp.int32) for s in wanted]


def results(rows: int, tokens: int, k: int, like: Array) -> tuple[list[pl.BlockSpec], list[jax.ShapeDtypeStruct]]:
    """Blocks and shapes of the keys and indices that `best` writes, by the grid's first axis."""
    kind = jax.typeof(like).manual_axis_type
    shape = jax.ShapeDtypeStruct((tokens, padded(k)), jnp.int32, manual_axis_type=kind)
    return [pl.BlockSpec((rows, padded(k)), lambda i, *_: (i, 0))] * 2, [shape] * 2


def for_rows(rows: int, step: int, f: Callable[[Any], None]) -> None:
    """f of slices of `step` rows."""

    def body(s, _):
        f(pl.ds(pl.multiple_of(s * step, step), step))
        return _

    lax.fori_loop(0, rows // step, body, 0)


def clear(keys: Any, tiles: Any, n_tiles: int) -> None:
    """Empty bins: the lowest key, of a tile beyond the last."""

    step = math.gcd(keys.shape[1], _PIECE)

    def rows(at):
        for ref, value in ((keys, LOWEST), (tiles, n_tiles)):
            ref[:, at] = jnp.full((ref.shape[0], step, ref.shape[2]), value, jnp.int32)

    for_rows(keys.shape[1], step, rows)


def insert(keys: Any, tiles: Any, at: Any, first: int, fresh: Sequence[tuple[Array, Any]]) -> None:
    """Offer elements to their bins: one load and store of a bin for all tiles.

    Args:
      keys, tiles: see `state`.
      at: slice of rows.
      first: bin of the first column.
      fresh: (keys [rows, columns], tile), later tiles last.
    """
    rows, columns = fresh[0][0].shape
    step = math.gcd(rows, _PIECE)
    for row in range(0, rows, step):
        for column in range(0, columns, LANES):
            here = pl.ds(at.start + row, step), pl.ds(first + column, LANES)
            held = [keys[m, *here] for m in range(keys.shape[0])]
            names = [tiles[m, *here] for m in range(tiles.shape[0])]
            for key, tile in fresh:
                new = key[row : row + step, column : column + LANES]
                moving, name = new, jnp.full(new.shape, tile, jnp.int32)
                for m in range(len(names)):
                    better = new > held[m]  # an equal one stays ahead: it is earlier
                    held[m], moving = jnp.where(better, moving, held[m]), jnp.where(better, held[m], moving)
                    names[m], name = jnp.where(better, name, names[m]), jnp.where(better, names[m], name)
                held[-1] = jnp.maximum(held[-1], moving)
            for ref, values in ((keys, held), (tiles, names)):
                for m, value in enumerate(values):
                    ref[m, *here] = value


def best(keys: Any, tiles: Any, taken: Any, key_out: Any, index_out: Any, k: int, n: int) -> None:
    """The k best of every row, descending, from bins that have seen all n of it; indices -1 where they may be wrong.

    Uses the bins up.
    """
    levels, rows, bins = tiles.shape
    step = taken.shape[0]

    def choose(at):
        index = lax.broadcasted_iota(jnp.int32, (step, bins), 1)
        place = lax.broadcasted_iota(jnp.int32, (step, key_out.shape[1]), 1)
        for m in range(levels):
            tiles[m, at] = tiles[m, at] * bins + index  # from here on the element's index; n or more: unknown
        taken[...] = jnp.zeros(taken.shape, jnp.int32)

        def emit(j, chosen):
            head, name = keys[0, at], tiles[0, at]
            top = jnp.max(head, axis=1, keepdims=True)
            lowest = jnp.min(jnp.where(head == top, name, _ABOVE), axis=1, keepdims=True)
            hit = name == lowest
            count = jnp.where(hit, taken[...] + 1, taken[...])
            next_head, next_name = keys[levels, at], n + index
            for m in range(levels - 1, 0, -1):
                reached = count == m
                next_head = jnp.where(reached, keys[m, at], next_head)
                next_name = jnp.where(reached, tiles[m, at], next_name)
            keys[0, at], tiles[0, at] = jnp.where(hit, next_head, head), jnp.where(hit, next_name, name)
            taken[...] = count
            here = place == j
            return jnp.where(here, top, chosen[0]), jnp.where(here, lowest, chosen[1]), top

        zero = jnp.zeros(place.shape, jnp.int32)
        key, chosen, last = lax.fori_loop(0, k, emit, (zero, zero, jnp.zeros((step, 1), jnp.int32)))
        doubt = jnp.where((tiles[0, at] >= n) & (keys[0, at] >= last), 1, 0)
        key_out[at, :] = key
        index_out[at, :] = jnp.where(jnp.max(doubt, axis=1, keepdims=True) > 0, -1, chosen)

    for_rows(rows, step, choose)


def repaired(vals: Array, idx: Array, x: Array, again: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    """vals and idx [tokens, k], and again(x) in their place for every block of rows in which an index is -1."""
    tokens = x.shape[0]
    rows = min(REPAIR_ROWS, tokens)

    def block(i, out):
        start = jnp.minimum(i * rows, tokens - rows)  # the last block overlaps the one before
        *kept, of_x = (lax.dynamic_slice_in_dim(a, start, rows) for a in (*out, x))
        # Without this, the layout that `again` would like best spreads to x, and all of it is copied at every call.
        of_x = lax.optimization_barrier(of_x)
        new = lax.cond(jnp.any(kept[1] < 0), lambda: again(of_x), lambda: tuple(kept))
        return tuple(lax.dynamic_update_slice_in_dim(a, b, start, 0) for a, b in zip(out, new, strict=True))

    blocks = jnp.where(jnp.any(idx < 0), -(-tokens // rows), 0)
    return lax.fori_loop(0, blocks, block, (vals, idx))
