# SPDX-License-Identifier: Apache-2.0
"""Clusters of tokens: the nearest centroid, sums by cluster, a starting point, and k-means on an array in memory."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from .start import masked_mean

ENTRIES = 2**24
"""Most distances held at a time (64 MiB): centroids are compared in blocks, so the token axis may be sharded."""
_EXACT = lax.Precision.HIGHEST


def nearest(
    x: Float[Array, "n d"], centroids: Float[Array, "n_latents d"]
) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """(squared distance to the nearest centroid, its index); the lower index of equals. float32.

    Computed as |x|^2 - 2 x.c + |c|^2: centre x first if its mean is far from zero.

    Example:
      >>> nearest(jnp.array([[0.0, 2.0]]), jnp.array([[5.0, 0.0], [0.0, 1.0]]))[1].tolist()
      [1]
    """
    n_latents, _d = centroids.shape
    blocks = _blocks(centroids, x.shape[0])
    firsts = jnp.arange(blocks.shape[0], dtype=jnp.int32) * blocks.shape[1]

    def closer(best: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        block, first = part
        real = first + jnp.arange(block.shape[0], dtype=jnp.int32) < n_latents
        half = jnp.where(real, jnp.sum(jnp.square(block), 1) / 2, jnp.inf)
        score = half[None] - jnp.matmul(x, block.T, precision=_EXACT)
        value, at = jnp.min(score, 1), jnp.argmin(score, 1).astype(jnp.int32)
        better = value < best[0]
        return (jnp.where(better, value, best[0]), jnp.where(better, first + at, best[1])), None

    start = jnp.full_like(x[:, 0], jnp.inf), jnp.zeros_like(x[:, 0], jnp.int32)
    (score, index), _ = lax.scan(closer, start, (blocks, firsts))
    return jnp.maximum(jnp.sum(jnp.square(x), 1) + 2 * score, 0), index


def cluster_sums(
    x: Float[Array, "n d"], index: Int[Array, "n"], n_latents: int
) -> tuple[Float[Array, "n_latents d"], Int[Array, "n_latents"]]:
    """(sum of the tokens of each cluster, their number); an index of n_latents belongs to none.

    Products with one-hot blocks: a scattered sum depends on the order in which an accelerator's threads arrive.
    """
    like = jnp.zeros((n_latents, 0), x.dtype)
    block = _blocks(like, x.shape[0]).shape[1]

    def gathered(first: Array) -> tuple[Array, Array]:
        member = index[None, :] == first + jnp.arange(block, dtype=jnp.int32)[:, None]
        sums = jnp.matmul(member.astype(jnp.float32), x, precision=_EXACT)
        return sums, jnp.sum(member, 1, dtype=jnp.int32)

    sums, counts = lax.map(gathered, jnp.arange(0, n_latents, block, dtype=jnp.int32))
    return sums.reshape(-1, x.shape[1])[:n_latents], counts.reshape(-1)[:n_latents]


def _blocks(centroids: Array, n: int) -> Array:
    """[blocks, block, d], zeros after the end."""
    n_latents, d = centroids.shape
    block = max(1, min(n_latents, ENTRIES // max(n, 1)))
    return jnp.pad(centroids, ((0, -n_latents % block), (0, 0))).reshape(-(-n_latents // block), block, d)


def plus_plus(
    key: Key[Array, ""], x: Float[Array, "n d"], valid: Bool[Array, "n"], n_latents: int
) -> Float[Array, "n_latents d"]:
    """n_latents rows of x by greedy k-means++: each drawn with P proportional to its squared distance from those
    before, the best of 2 + log(n_latents) draws.

    Source: Arthur and Vassilvitskii 2007 (section 6 for the greedy draw).
    """
    tries = 2 + int(math.log(n_latents))
    norms = jnp.sum(jnp.square(x), 1)

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, left = carry
        picks = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(left), shape=(tries,))
        apart = norms[:, None] + norms[picks][None] - 2 * jnp.matmul(x, x[picks].T, precision=_EXACT)
        now = jnp.clip(apart, 0, left[:, None])
        best = jnp.argmin(jnp.sum(now, 0))
        return rows.at[i].set(x[picks[best]]), now[:, best]

    far = jnp.where(valid, jnp.finfo(jnp.float32).max / x.shape[0], 0)
    return lax.fori_loop(0, n_latents, add, (jnp.zeros((n_latents, x.shape[1]), jnp.float32), far))[0]


def lloyd(
    x: Float[Array, "n d"],
    n_latents: int,
    *,
    key: Key[Array, ""],
    mask: Bool[Array, "n"] | None = None,
    steps: int = 15,
) -> tuple[Float[Array, "n_latents d"], Int[Array, "n"]]:
    """(centroids, index of each token's cluster) by full-batch k-means from a k-means++ start; for arrays in memory.

    A cluster that loses all its tokens keeps its place. Tokens that do not count have an index as well.

    Example:
      >>> x = jnp.array([[0.0], [0.1], [9.0], [9.1]])
      >>> label = lloyd(x, 2, key=jax.random.key(0))[1]
      >>> bool(label[0] == label[1]), bool(label[2] == label[3]), bool(label[0] == label[2])
      (True, True, False)
    """
    valid = jnp.ones(x.shape[0], bool) if mask is None else mask
    centre = masked_mean(x.astype(jnp.float32), valid)[None]
    x = jnp.where(valid[:, None], x.astype(jnp.float32) - centre, 0)

    def again(_: Array, centroids: Array) -> Array:
        index = jnp.where(valid, nearest(x, centroids)[1], n_latents)
        sums, counts = cluster_sums(x, index, n_latents)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1).astype(jnp.float32)[:, None], centroids)

    centroids = lax.fori_loop(0, steps, again, plus_plus(key, x, valid, n_latents))
    return centroids + centre, nearest(x, centroids)[1]
