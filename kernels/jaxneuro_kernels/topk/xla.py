# SPDX-License-Identifier: Apache-2.0
"""Exact top-k from XLA ops: in two levels where that beats `lax.top_k`.

Let tau be the k-th largest group maximum. Every element above tau lies in a group whose maximum is above tau, so in a
chosen one, and the k chosen groups hold at least k elements >= tau: the values are exact. Groups are chosen lowest
index first and their elements kept in index order, so ties come out as in `lax.top_k`: elements equal to tau in groups
left out all have higher indices. What is below tau is lowered before the last selection: XLA's CPU heap pays per
candidate that beats its minimum, and then hardly any does (half the time of that selection).
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from .order import LOWEST, from_key, to_key

FROM_RATIO = 64
"""Two levels win from n / k = 64 on (CPU, 256 x 1,024 ... 64 x 131,072, k 8 ... 128: 1.2x at 64, 4.5x at 4,096)."""
GROUPS = (8, 32)
"""Smallest and largest group: from 64 on, XLA's CPU reduction over the minor axis is 5x slower."""


def group_size(n: int, k: int) -> int | None:
    """Elements per group, near sqrt(n / k), which balances n / group maxima against k * group candidates.

    None: one level is faster, or n does not divide.

    Example:
      >>> group_size(8192, 32), group_size(131072, 32), group_size(1024, 32)
      (16, 32, None)
    """
    if n < FROM_RATIO * k:
        return None
    group = min(max(2 ** round(math.log2(math.sqrt(n / k))), GROUPS[0]), GROUPS[1])
    return group if n % group == 0 else None


def topk(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of the last axis, descending, ties by lowest index."""
    if x.dtype.itemsize > 4:  # float64 has no 32-bit key
        return _one_level(x, k)
    group = group_size(x.shape[-1], k)
    wide = x.astype(jnp.float32)  # exact; and XLA sorts short bfloat16 rows instead of selecting
    vals, idx = _one_level(wide, k) if group is None else two_level(wide, k, group)
    return vals.astype(x.dtype), idx


def _one_level(x: Array, k: int) -> tuple[Array, Array]:
    vals, idx = lax.top_k(x, k)
    return vals, idx.astype(jnp.int32)


def two_level(x: Array, k: int, group: int) -> tuple[Array, Array]:
    """Best groups by their maximum, then the best inside them. x: float32, last axis a multiple of `group`."""
    *batch, n = x.shape
    grouped = x.reshape(*batch, n // group, group)
    best, chosen = lax.top_k(from_key(to_key(grouped).max(-1)), k)
    chosen = jnp.sort(chosen.astype(jnp.int32), axis=-1)
    near = jnp.take_along_axis(grouped, chosen[..., None], axis=-2, mode="clip").reshape(*batch, k * group)
    key = to_key(near)
    key = jnp.where(key >= to_key(best[..., -1:]), key, jnp.int32(LOWEST))
    vals, at = lax.top_k(from_key(key), k)
    at = at.astype(jnp.int32)
    start = jnp.take_along_axis(chosen, at // jnp.int32(group), axis=-1, mode="clip") * jnp.int32(group)
    return vals, start + at % jnp.int32(group)
