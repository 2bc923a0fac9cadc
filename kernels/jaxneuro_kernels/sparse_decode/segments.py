# SPDX-License-Identifier: Apache-2.0
"""Sums of rows per latent in a fixed order, with gathers alone: no atomics, no scatter, no order of arrival.

Entries (token, latent) are sorted by latent and cut into chunks of at most CHUNK entries of one latent; every chunk is
summed, then chunks of one latent are added pairwise, nearest first, in ceil(log2(longest)) rounds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

CHUNK = 8
"""Entries per chunk. There are at most entries / CHUNK + latents chunks; idle slots of a chunk are wasted reads."""


class Order(NamedTuple):
    """Entries (token, j) in the order of their latents, those of one latent in the order of their tokens."""

    entry: Array
    """[tokens * k] int32: token * k + j."""
    start: Array
    """[n_latents] int32: where a latent's entries start."""
    stop: Array


def by_latent(idx: Array, n_latents: int) -> Order:
    """The order of idx [tokens, k]. Entries of no latent (outside 0 ... n_latents) are nobody's.

    Example:
      >>> order = by_latent(jnp.array([[2, 0], [2, 1]]), 3)
      >>> order.entry.tolist(), order.start.tolist(), order.stop.tolist()
      ([1, 3, 0, 2], [0, 1, 2], [1, 2, 4])
    """
    entry = jnp.arange(idx.size, dtype=jnp.int32)
    latent, entry = lax.sort((idx.reshape(-1), entry), num_keys=1, is_stable=True)  # one key: a radix sort on a GPU
    latents = jnp.arange(n_latents, dtype=jnp.int32)
    start, stop = (jnp.searchsorted(latent, latents, side=s).astype(jnp.int32) for s in ("left", "right"))
    return Order(entry, start, stop)


class Parts(NamedTuple):
    """Long latents cut into parts of their entries."""

    begin: Array
    """[parts] int32: first entry of a part; begin = end beyond the last part."""
    end: Array
    owner: Array
    """[parts]: its latent."""
    first: Array
    """[n_latents]: its first part; first = after for latents that are not in parts."""
    after: Array


def cut(order: Order, size: int) -> Parts:
    """Latents with more than `size` entries in parts of that size, others in none. 2 entries / size parts suffice.

    Example:
      >>> parts = cut(by_latent(jnp.array([[0], [0], [0], [1]]), 2), 2)
      >>> parts.begin.tolist(), parts.end.tolist(), parts.first.tolist(), parts.after.tolist()
      ([0, 2, 0, 0], [2, 3, 0, 0], [0, 2], [2, 2])
    """
    n_parts = max(1, 2 * order.entry.size // size)
    count = order.stop - order.start
    pieces = jnp.where(count > size, -(-count // jnp.int32(size)), 0)
    after = jnp.cumsum(pieces, dtype=jnp.int32)
    first = after - pieces
    part = jnp.arange(n_parts, dtype=jnp.int32)
    owner = jnp.minimum(jnp.searchsorted(after, part, side="right"), count.shape[0] - 1).astype(jnp.int32)
    begin = order.start[owner] + (part - first[owner]) * jnp.int32(size)
    end = jnp.minimum(begin + jnp.int32(size), order.stop[owner])
    there = part < after[-1]
    return Parts(jnp.where(there, begin, 0), jnp.where(there, end, 0), owner, first, after)


def sums_of_rows(idx: Array, n_latents: int, products: Sequence[tuple[Array, Array]]) -> list[Array]:
    """For every (vals [tokens, k], x [tokens, d]): float32 [n_latents, d], the sum of vals[t, j] x[t] per latent.

    Sorted once for all products.
    """
    tokens, k = idx.shape
    entries = tokens * k
    order, start, stop = by_latent(idx, n_latents)

    chunks = -(-(stop - start) // CHUNK)
    after = jnp.cumsum(chunks, dtype=jnp.int32)
    first = after - chunks
    chunk = jnp.arange(min(entries, entries // CHUNK + n_latents), dtype=jnp.int32)
    owner = jnp.minimum(jnp.searchsorted(after, chunk, side="right"), n_latents - 1).astype(jnp.int32)
    inside = chunk - first[owner]
    entry = start[owner] + inside * CHUNK
    rounds = _log2(jnp.max(chunks, initial=1))

    sums = []
    for vals, x in products:
        flat = vals.astype(jnp.float32).reshape(-1)[order]
        total = _chunk_sums(entry, stop[owner], flat, order // k, x)
        total = lax.fori_loop(0, rounds, lambda r, total: _pairs(r, total, inside, chunks[owner]), total)
        own = jnp.take(total, first, axis=0, mode="clip")
        sums.append(jnp.where((chunks > 0)[:, None], own, jnp.float32(0)))
    return sums


def _chunk_sums(entry: Array, stop: Array, vals: Array, token: Array, x: Array) -> Array:
    """[chunks, d]: each chunk's entries from `entry` on, up to CHUNK of them and before `stop`."""

    def one(s):
        e = entry + s
        val = jnp.where(e < stop, jnp.take(vals, e, mode="clip"), jnp.float32(0))
        return val[:, None] * jnp.take(x, jnp.take(token, e, mode="clip"), axis=0, mode="clip").astype(jnp.float32)

    return lax.fori_loop(1, CHUNK, lambda s, total: total + one(s), one(jnp.int32(0)))


def _pairs(r: Array, total: Array, inside: Array, length: Array) -> Array:
    """Round r: chunk c of its latent takes in chunk c + 2^r, for c a multiple of 2^(r+1)."""
    step = jnp.int32(1) << r
    here = jnp.arange(total.shape[0], dtype=jnp.int32)
    takes = (inside % (2 * step) == 0) & (inside + step < length)
    other = jnp.take(total, here + step, axis=0, mode="clip")
    return jnp.where(takes[:, None], total + other, total)


def _log2(n: Array) -> Array:
    """ceil(log2(n)) of a positive int32."""
    return jnp.int32(32) - lax.clz(n.astype(jnp.int32) - 1)
