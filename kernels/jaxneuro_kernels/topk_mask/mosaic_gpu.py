# SPDX-License-Identifier: Apache-2.0
"""The mask's two bisections on a Hopper GPU: one row per warpgroup, read once and counted in registers.

The kernel returns two numbers per row, the k-th largest and the index before which its equals are kept; the mask made
from them is elementwise, and XLA fuses it with what uses it. XLA's own bisection reads the row for every bit.
"""

from typing import Final

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..hopper import refuses_arrays, refuses_width, result, strided
from ..topk.bisect import last, wide_image, within

WIDEST: Final = 16384
"""Elements of a row that a warpgroup's registers hold."""


def refuses(h: Array, k: int) -> str | None:
    """Why this call cannot be taken, or None."""
    del k
    return refuses_arrays(h) or refuses_width(WIDEST, n=h.shape[-1])


def topk_mask(h: Array, k: int) -> Array:
    """bool: the k largest of each row."""
    *batch, n = h.shape
    threshold, end = (a.reshape(*batch, 1) for a in bounds(h.reshape(-1, n), k))
    return within(h, threshold, end)


def bounds(h: Array, k: int) -> tuple[Array, Array]:
    """int32 per row of h [rows, n]: the image of the k-th largest, and the index before which its equals are kept."""
    rows, n = h.shape
    bits = jnp.finfo(h.dtype).bits

    def kernel(h_ref, threshold_ref, end_ref):
        r = lax.axis_index("row")
        keys = wide_image(plgpu.load(h_ref.at[r], layout=strided(n)))
        index = plgpu.broadcasted_iota(jnp.int32, (n,), 0, layout=strided(n))

        def count(these):
            return jnp.sum(these.astype(jnp.int32))

        threshold = last(lambda t: count(keys >= t) >= k, jnp.int32(-(2 ** (bits - 1))), bits)
        spare = jnp.int32(k) - count(keys > threshold)
        threshold_ref[r] = threshold
        tie = keys == threshold
        end_ref[r] = last(lambda m: count(tie & (index < m)) <= spare, jnp.int32(0), n.bit_length())

    return plgpu.kernel(
        kernel,
        out_type=[result((rows,), jnp.int32)] * 2,
        grid=(rows,),
        grid_names=("row",),
    )(h)
