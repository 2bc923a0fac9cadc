# SPDX-License-Identifier: Apache-2.0
"""Exact top-k on a Hopper GPU from the maxima of groups: one token per warpgroup, no sort.

    round 1   k times: the largest group maximum (ties: the first group), and at once the bulk copy of that group into
              shared memory, so that copies run while later rounds search
    round 2   k times: the largest of the k * group candidates (ties: the lowest index)

Why k groups are enough: see xla.py. The work on keys, not on floats, gives NaN and signed zeros their place. Reads
n / group maxima and k groups of a row instead of the row; everything else is in registers.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..hopper import LANES, refuses_arrays, result, strided, whole
from .order import LOWEST, from_key, to_key

MOST_CANDIDATES = 8192
"""k * group that fit a warpgroup's registers (230 of 255 at this size)."""
_ABOVE = 2**30


def group_size(n: int, k: int) -> int | None:
    """Elements per group: the power of two nearest sqrt(n / k) that the hardware takes, or None.

    Example:
      >>> group_size(131072, 32), group_size(131072, 128), group_size(1000, 8)
      (64, 32, None)
    """
    fitting = [g for g in (16, 32, 64, 128) if _takes(n, k, g)]
    return min(fitting, key=lambda g: abs(g * g * k - n)) if fitting else None


def _takes(n: int, k: int, group: int) -> bool:
    copies = _padded(k, group)
    return n % (group * LANES) == 0 and n // group >= copies and copies * group <= MOST_CANDIDATES


def _padded(k: int, group: int) -> int:
    """Groups copied: k, and as many more as make whole warpgroups of candidates and equal shares of the barriers."""
    per = copies_per_barrier(k)
    unit = max(per, LANES // group)
    return -(-k // unit) * unit


def copies_per_barrier(k: int) -> int:
    """A kernel has at most 32 barriers, so above k = 32 several copies share one."""
    return 1 << max(0, (k - 1).bit_length() - 5)


def refuses(x: Array, k: int) -> str | None:
    """Why this call cannot be taken, or None."""
    n = x.shape[-1]
    if group_size(n, k) is None:
        return f"no group of 16 to 128 divides n = {n} into whole warpgroups with k * group <= {MOST_CANDIDATES}"
    return refuses_arrays(x)


def topk(x: Array, k: int, *, group: int | None = None) -> tuple[Array, Array]:
    """The k largest of the last axis, descending, ties by lowest index. The group maxima are XLA's: one pass over x."""
    *batch, n = x.shape
    group = group if group and _takes(n, k, group) else group_size(n, k)
    assert group is not None, (n, k)
    flat = x.reshape(-1, n)
    maxima = from_key(to_key(flat.reshape(-1, n // group, group)).max(-1))
    vals, idx = select(flat, maxima, k, group)
    return vals.reshape(*batch, k).astype(x.dtype), idx.reshape(*batch, k)


def select(x: Array, maxima: Array, k: int, group: int) -> tuple[Array, Array]:
    """(values float32, indices), descending, of x [tokens, n] given the maxima [tokens, n / group] of its groups."""
    tokens, n = x.shape
    groups, copies = n // group, _padded(k, group)
    m = copies * group
    per = copies_per_barrier(copies)

    def kernel(x_ref, maxima_ref, key_ref, idx_ref, near, chosen, arrived):
        t = lax.axis_index("token")

        def fetch(j, g):
            source = x_ref.at[t, pl.ds(g * group, group)]
            plgpu.copy_gmem_to_smem(source, near.at[pl.ds(j * group, group)], arrived.at[j // per])

        keys = _alive(plgpu.load(maxima_ref.at[t], layout=strided(groups)))
        at = plgpu.broadcasted_iota(jnp.int32, (groups,), 0, layout=strided(groups))
        above, lowest = whole(groups, _ABOVE), whole(groups, LOWEST)

        def choose(j, keys):
            g = jnp.min(jnp.where(keys == jnp.max(keys), at, above))
            chosen[j] = g
            fetch(j, g)
            return jnp.where(at == g, lowest, keys)

        lax.fori_loop(0, copies, choose, keys)  # those beyond the k-th do no harm

        def wait(b, _):
            plgpu.barrier_wait(arrived.at[b])
            return _

        lax.fori_loop(0, copies // per, wait, 0)
        plgpu.commit_smem()

        keys = _alive(plgpu.load(near, layout=strided(m)))
        at = plgpu.broadcasted_iota(jnp.int32, (m,), 0, layout=strided(m))
        slot = lax.shift_right_logical(at, jnp.full_like(at, group.bit_length() - 1))
        inside = at & jnp.full_like(at, group - 1)
        above, lowest = whole(m, _ABOVE), whole(m, LOWEST)

        def name(j, latent):
            return jnp.where(slot == j, chosen[j] * group + inside, latent)

        latent = lax.fori_loop(0, copies, name, at)

        def emit(j, keys):
            best = jnp.max(keys)
            i = jnp.min(jnp.where(keys == best, latent, above))
            key_ref[t, j] = best
            idx_ref[t, j] = i
            return jnp.where(latent == i, lowest, keys)

        lax.fori_loop(0, k, emit, keys)

    keys, idx = plgpu.kernel(
        kernel,
        out_type=[result((tokens, k), jnp.int32)] * 2,
        grid=(tokens,),
        grid_names=("token",),
        scratch_types=(
            plgpu.SMEM((m,), x.dtype),
            plgpu.SMEM((copies,), jnp.int32),
            plgpu.Barrier(num_arrivals=per, num_barriers=copies // per),
        ),
    )(x, maxima)
    return from_key(keys), idx


def _alive(x: Array) -> Array:
    """Keys of x, all above LOWEST, which marks what was taken (the NaN with every bit set becomes its neighbour)."""
    keys = to_key(x)
    return jnp.maximum(keys, jnp.full_like(keys, LOWEST + 1))
