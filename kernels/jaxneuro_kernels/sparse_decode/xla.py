# SPDX-License-Identifier: Apache-2.0
"""The three products from XLA ops, without the [tokens, k, d] buffer. Two-dimensional cores, float32 out.

One gather of whole rows per j, added at once: XLA fuses the gather into the sum, so the working set is [tokens, d]
(CPU, 2,048 x 256, k = 32: 3 ms, against 35 for an einsum over gathered rows). UNROLL of them at a time read and write
the sum once (half the time). Products with every row are summed the other way on a CPU, where a sum over the last axis
is a chain of additions: k rows of a few tokens are gathered into cache and multiplied there (half the time too).
Indices are trusted: one outside 0 <= i < n_latents is clipped when read and dropped when added to.
"""

from typing import Final

import jax.numpy as jnp
from jax import Array, lax

from ..vary import vary, varying
from .segments import sums_of_rows

UNROLL: Final = 8
"""Rows added to a sum at once. In order, whatever it is."""
GATHERED_BYTES: Final = 1 << 18
"""Of rows in cache for `gather_dot` on a CPU."""


def rows(w: Array, i: Array) -> Array:
    """float32 [len(i), d]: rows i of w."""
    return jnp.take(w, i, axis=0, mode="clip").astype(jnp.float32)


def sparse_decode(vals: Array, idx: Array, w: Array) -> Array:
    """See reference.py."""

    def add(total, entry):
        val, i = entry
        return total + val[:, None] * rows(w, i), None

    start = zeros((idx.shape[0], w.shape[1]), vals, idx, w)
    return lax.scan(add, start, (vals.astype(jnp.float32).T, idx.T), unroll=UNROLL)[0]


def gather_dot(x: Array, idx: Array, w: Array) -> Array:
    """See reference.py."""
    (tokens, k), d = idx.shape, w.shape[1]

    def by_token(x, idx, w):
        block = min(tokens, max(1, GATHERED_BYTES // (4 * k * d)))
        padded = (jnp.pad(a, ((0, -tokens % block), (0, 0))).reshape(-1, block, a.shape[1]) for a in (x, idx))

        def some(part):
            x, idx = part
            near = rows(w, idx.reshape(-1)).reshape(block, k, d)
            return jnp.einsum("td,tkd->tk", x, near, precision=lax.Precision.HIGHEST)

        return lax.map(some, tuple(padded)).reshape(-1, k)[:tokens]

    def by_entry(x, idx, w):
        return lax.map(lambda i: jnp.sum(x * rows(w, i), axis=-1), idx.T).T

    return lax.platform_dependent(x.astype(jnp.float32), idx, w, cpu=by_token, default=by_entry)


def row_sum(vals: Array, idx: Array, x: Array, n_latents: int) -> Array:
    """See reference.py. On a CPU rows are added in place, token after token; elsewhere scatters are not ordered, so
    entries are sorted by latent and summed in a fixed tree."""
    vals, x = vals.astype(jnp.float32), x.astype(jnp.float32)

    def in_place(vals, idx, x):
        def add(total, entry):
            val, i = entry
            return total.at[i].add(val[:, None] * x, mode="drop"), None

        start = zeros((n_latents, x.shape[1]), vals, idx, x)
        return lax.scan(add, start, (vals.T, idx.T))[0]

    def in_order(vals, idx, x):
        return sums_of_rows(idx, n_latents, ((vals, x),))[0]

    return lax.platform_dependent(vals, idx, x, cpu=in_place, default=in_order)


def zeros(shape: tuple[int, ...], *like: Array) -> Array:
    """float32 zeros that vary over the mesh axes over which any of `like` does (inside shard_map a carry must)."""
    return vary(jnp.zeros(shape, jnp.float32), varying(*like))
