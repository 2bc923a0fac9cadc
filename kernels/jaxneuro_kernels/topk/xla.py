# SPDX-License-Identifier: Apache-2.0
"""Exact top-k from XLA ops: in two levels where that beats `lax.top_k`.

Let tau be the k-th largest group maximum. Every element above tau lies in a group whose maximum is above tau, so in a
chosen one, and the k chosen groups hold at least k elements >= tau: the values are exact. Groups are chosen lowest
index first and their elements kept in index order, so ties come out as in `lax.top_k`: elements equal to tau in groups
left out all have higher indices. What is below tau is lowered before the last selection: XLA's CPU heap pays per
candidate that beats its minimum, and then hardly any does (half the time of that selection).

On an NVIDIA GPU a stable `lax.top_k` is a full sort (k > 16), an unstable one a selection. So the selection runs there,
for k + 1: if the last of these is strictly below the k-th in every row, no tie was cut and the k are the right ones,
and only they are sorted. Otherwise (float32 pre-activations: hardly ever) the stable one runs.
"""

import functools
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
    if group is None:
        vals, idx = _one_level(wide, k)
    else:
        stable = functools.partial(two_level, k=k, group=group)
        vals, idx = lax.platform_dependent(wide, cuda=functools.partial(certified, k=k, group=group), default=stable)
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


def certified(x: Array, k: int, group: int) -> tuple[Array, Array]:
    """`two_level` by unstable selections where these cannot differ from it, which is checked. Same arguments."""
    vals, idx, exact = _unstable(x, k, group)
    return lax.cond(exact, lambda: (vals, idx), lambda: two_level(x, k, group))


def _unstable(x: Array, k: int, group: int) -> tuple[Array, Array, Array]:
    """(values, indices) in order, and whether they are the right ones in every row."""
    *batch, n = x.shape
    grouped = x.reshape(*batch, n // group, group)
    best, chosen = lax.top_k(from_key(to_key(grouped).max(-1)), k + 1, is_stable=False)
    near = jnp.take_along_axis(grouped, chosen[..., None].astype(jnp.int32), axis=-2, mode="clip")
    near = near.reshape(*batch, (k + 1) * group)
    key = to_key(near)
    near = jnp.where(key >= to_key(best[..., -1:]), near, jnp.float32(-jnp.inf))  # NaN of negative sign too
    vals, at = lax.top_k(near, k + 1, is_stable=False)
    exact = jnp.all(vals[..., k] < vals[..., k - 1]) & ~jnp.any(jnp.isnan(best))
    vals, at = vals[..., :k], at[..., :k].astype(jnp.int32)
    start = jnp.take_along_axis(chosen.astype(jnp.int32), at // jnp.int32(group), axis=-1, mode="clip")
    idx = start * jnp.int32(group) + at % jnp.int32(group)
    order, idx = lax.sort((~to_key(vals), idx), num_keys=2)
    return from_key(~order), idx, exact
