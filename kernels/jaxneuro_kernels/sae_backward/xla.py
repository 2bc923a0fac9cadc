# SPDX-License-Identifier: Apache-2.0
"""One pass over the active entries from XLA ops.

On a CPU: for j = 0 ... k-1, a row of w_dec per token is read once for dval_j, and the rows of both gradients are added
in place, token after token. Elsewhere: entries sorted by latent once, for all three sums.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..sparse_decode.segments import sums_of_rows
from ..sparse_decode.xla import gather_dot, rows, zeros
from .adam import Rates, Rows, along_sphere, updated


def sae_backward(
    vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array, relu: bool = True
) -> tuple[Array, Array, Array, Array]:
    """See reference.py. Two-dimensional vals, idx, g, x."""
    vals, g, x, extra = (a.astype(jnp.float32) for a in (vals, g, x, extra))

    def gated(dval, val):
        return jnp.where(val > 0, dval, jnp.float32(0)) if relu else dval

    def in_place(vals, idx, g, x, w_dec, extra):
        def add(sums, entry):
            dec, enc, bias = sums
            val, i, more = entry
            dval = gated(jnp.sum(g * rows(w_dec, i), axis=-1) + more, val)
            dec = dec.at[i].add(val[:, None] * g, mode="drop")
            enc = enc.at[i].add(dval[:, None] * x, mode="drop")
            return (dec, enc, bias.at[i].add(dval, mode="drop")), dval

        n = w_dec.shape[0]
        start = tuple(zeros(s, vals, idx, g, x, w_dec, extra) for s in (w_dec.shape, (n, x.shape[1]), (n,)))
        (dec, enc, bias), dvals = lax.scan(add, start, (vals.T, idx.T, extra.T))
        return dvals.T, dec, enc, bias

    def in_order(vals, idx, g, x, w_dec, extra):
        dvals = gated(gather_dot(g, idx, w_dec) + extra, vals)
        one = jnp.ones((idx.shape[0], 1), jnp.float32)
        dec, enc, bias = sums_of_rows(idx, w_dec.shape[0], ((vals, g), (dvals, x), (dvals, one)))
        return dvals, dec, enc, bias[:, 0]

    return lax.platform_dependent(vals, idx, g, x, w_dec, extra, cpu=in_place, default=in_order)


def sae_adam(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    extra: Array,
    parameters: Rows,
    first: Rows,
    second: Rows,
    r: Rates,
    relu: bool = True,
    unit_norm: bool = False,
) -> tuple[Rows, Rows, Rows, Array]:
    """See reference.py. The backward pass, then Adam: two passes over the gradients."""
    dvals, dec, enc, bias = sae_backward(vals, idx, g, x, w_dec, extra, relu)
    w = parameters.w_dec
    if unit_norm:
        dec = along_sphere(dec, w, jnp.sum(dec * w, -1, keepdims=True), jnp.sum(w * w, -1, keepdims=True))
    gradients = Rows(enc, bias, dec)
    moved = jax.tree.map(lambda p, m, v, g: updated(p, m, v, g, r), parameters, first, second, gradients)
    p, m, v = (Rows(*(leaf[i] for leaf in moved)) for i in range(3))
    if unit_norm:
        squared = jnp.sum(p.w_dec * p.w_dec, -1, keepdims=True)
        p = p._replace(w_dec=p.w_dec * lax.rsqrt(jnp.maximum(squared, jnp.float32(1e-30))))
    return p, m, v, dvals
