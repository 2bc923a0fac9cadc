# SPDX-License-Identifier: Apache-2.0
"""The mask's two bisections on a TPU: a block of rows is read into VMEM once and counted there, all its rows at a time.

The kernel returns two numbers per row, a bound on the key and, for those equal to it, on the index; the mask made from
them is elementwise, and XLA fuses it with what uses it. It stops as soon as every row of the block has exactly k
above its bound, after 25 to 30 of 32 counts for normal float32 rows of 14,336, and looks at ties only if some row does
not get there.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..topk.bins import LANES, VMEM_BYTES
from ..topk.bisect import last, wide_image, within
from ..topk.order import LOWEST

_ELEMENTS: Final = 1 << 20
"""Of one block: every count over it is unrolled."""
_ROWS: Final = 16
"""At least: bfloat16 lies in memory by 16 rows."""


def refuses(h: Array, k: int) -> str | None:
    """Why this call cannot be taken, or None."""
    del k
    n = h.shape[-1]
    if h.dtype not in (jnp.float32, jnp.bfloat16):
        return f"h is {h.dtype}; it takes float32 and bfloat16"
    if n % LANES or n * _ROWS > _ELEMENTS:
        return f"rows of {n} are no multiple of {LANES} or above {_ELEMENTS // _ROWS}"
    return None


def topk_mask(h: Array, k: int) -> Array:
    """bool: the k largest of each row."""
    *batch, n = h.shape
    bound, end = (a.reshape(*batch, 1) for a in bounds(h.reshape(-1, n), k))
    return within(h, bound, end)


def bounds(h: Array, k: int) -> tuple[Array, Array]:
    """Two int32 [rows, 1] of h [rows, n]: kept are keys above the first, and its equals at indices below the second."""
    total, n = h.shape
    rows = min(_ELEMENTS // n, 4 * LANES, total) // _ROWS * _ROWS or _ROWS
    bits = 8 * h.dtype.itemsize

    def kernel(h_ref, bound_ref, end_ref, keys):
        keys[...] = wide_image(h_ref[...])

        def count(kept):
            return jnp.sum(kept.astype(jnp.int32), axis=1, keepdims=True)

        def unsettled(state):
            bit, _, reached = state
            return (bit >= 0) & jnp.any(reached != k)

        def fix_bit(state):
            bit, bound, reached = state
            higher = bound + (jnp.int32(1) << bit)
            of_higher = count(keys[...] >= higher)
            enough = of_higher >= k
            return bit - 1, jnp.where(enough, higher, bound), jnp.where(enough, of_higher, reached)

        start = jnp.full((rows, 1), LOWEST >> (32 - bits), jnp.int32)
        _last_bit, bound, reached = lax.while_loop(
            unsettled, fix_bit, (jnp.int32(bits - 1), start, jnp.full((rows, 1), n, jnp.int32))
        )
        bound_ref[...] = jnp.broadcast_to(bound, bound_ref.shape)
        end_ref[...] = jnp.full(end_ref.shape, n, jnp.int32)

        @pl.when(jnp.any(reached != k))
        def _():
            spare = jnp.int32(k) - count(keys[...] > bound)
            index = lax.broadcasted_iota(jnp.int32, (rows, n), 1)
            start = jnp.zeros((rows, 1), jnp.int32)
            end = last(lambda m: count((keys[...] == bound) & (index < m)) <= spare, start, n.bit_length())
            end_ref[...] = jnp.broadcast_to(end, end_ref.shape)

    kind = jax.typeof(h).manual_axis_type
    bound, end = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(total, rows),),
        in_specs=[pl.BlockSpec((rows, n), lambda i: (i, 0))],
        out_specs=[pl.BlockSpec((rows, LANES), lambda i: (i, 0))] * 2,
        out_shape=[jax.ShapeDtypeStruct((total, LANES), jnp.int32, manual_axis_type=kind)] * 2,
        scratch_shapes=[pltpu.VMEM((rows, n), jnp.int32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES),
    )(h)
    return bound[:, :1], end[:, :1]
