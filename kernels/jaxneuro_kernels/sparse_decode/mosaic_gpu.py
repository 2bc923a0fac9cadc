# SPDX-License-Identifier: Apache-2.0
"""The three products on a Hopper GPU: rows come by bulk copies, several in flight, sums stay in registers.

sparse_decode, gather_dot   one token per warpgroup, its k rows of w through a ring of `slots` buffers
row_sum                     one latent per warpgroup: see latents.py
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..hopper import SHARED_BYTES, fold, folded, refuses_arrays, refuses_width, result
from .latents import latent_pass
from .segments import by_latent

WIDEST = 12288
"""Of a row; wider ones spill registers."""
SLOTS = 8
"""Rows in flight per token, unless measured otherwise."""


def refuses(a: Array, idx: Array, w: Array, *_: int) -> str | None:
    """Why this call cannot be taken, or None. The last array is the one whose rows are gathered."""
    del idx
    return refuses_arrays(a, w) or refuses_width(WIDEST, d=w.shape[-1])


def ring(k: int, row_bytes: int, slots: int | None = None) -> int:
    """Buffers of one ring: at most k, and what shared memory holds."""
    return max(1, min(slots or SLOTS, k, SHARED_BYTES // row_bytes))


def sparse_decode(vals: Array, idx: Array, w: Array, *, slots: int | None = None) -> Array:
    """See reference.py."""

    def body(t, rows, refs):
        vals_ref, out_ref = refs
        start = jnp.zeros(folded(w.shape[1]), jnp.float32)
        out_ref[t] = rows(lambda j, row, total: total + vals_ref[t, j] * row, start)

    return _over_rows(body, idx, w, (vals.astype(jnp.float32),), folded(w.shape[1]), slots).reshape(-1, w.shape[1])


def gather_dot(x: Array, idx: Array, w: Array, *, slots: int | None = None) -> Array:
    """See reference.py."""

    def body(t, rows, refs):
        x_ref, out_ref = refs
        mine = x_ref[t].astype(jnp.float32)

        def put(j, row, _):
            out_ref[t, j] = jnp.sum(mine * row)
            return _

        rows(put, jnp.int32(0))

    return _over_rows(body, idx, w, (fold(x),), (idx.shape[1],), slots)


def _over_rows(
    body, idx: Array, w: Array, operands: tuple[Array, ...], out: tuple[int, ...], slots: int | None
) -> Array:
    """body(token, rows, (*operands, out)) for every token; rows(f, start) folds f(j, row j in float32, so far)."""
    (tokens, k), (n, d) = idx.shape, w.shape
    slots = ring(k, d * w.dtype.itemsize, slots)

    def kernel(idx_ref, w_ref, *refs):
        *refs, buffers, arrived = refs
        t = lax.axis_index("token")

        def fetch(j, slot):
            row = jnp.minimum(jnp.maximum(idx_ref[t, j], 0), n - 1)
            plgpu.copy_gmem_to_smem(w_ref.at[row], buffers.at[slot], arrived.at[slot])

        for j in range(slots):
            fetch(j, j)

        def rows(f, start):
            def step(j, so_far):
                slot = lax.rem(j, slots)
                plgpu.barrier_wait(arrived.at[slot])
                so_far = f(j, buffers[slot].astype(jnp.float32), so_far)
                plgpu.commit_smem()  # every lane has read the slot before it is overwritten

                @pl.when(j + slots < k)
                def _():
                    fetch(j + slots, slot)

                return so_far

            return lax.fori_loop(0, k, step, start)

        body(t, rows, refs)

    return plgpu.kernel(
        kernel,
        out_type=result((tokens, *out), jnp.float32),
        grid=(tokens,),
        grid_names=("token",),
        scratch_types=(
            plgpu.SMEM((slots, *folded(d)), w.dtype),
            plgpu.Barrier(num_barriers=slots),
        ),
    )(idx, fold(w), *operands)


def row_sum(
    vals: Array, idx: Array, x: Array, n_latents: int, *, slots: int | None = None, split: int | None = None
) -> Array:
    """See reference.py."""
    (total,) = latent_pass(by_latent(idx, n_latents), idx, vals, (x,), slots=slots, split=split).outputs
    return total.reshape(n_latents, x.shape[1])
