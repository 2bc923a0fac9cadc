# SPDX-License-Identifier: Apache-2.0
"""The backward pass on a Hopper GPU: one pass over the latents, rows of g and x the only sparse traffic."""

import jax.numpy as jnp
from jax import Array

from ..hopper import refuses_width
from ..sparse_decode.latents import Backward, latent_pass
from ..sparse_decode.segments import by_latent


def refuses(vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, *_: Array) -> str | None:
    """Why this call cannot be taken, or None."""
    del vals, idx
    if any(a.dtype not in (jnp.float32, jnp.bfloat16) for a in (g, x, w_dec)):
        return f"operands are {g.dtype}, {x.dtype} and {w_dec.dtype}; it takes float32 and bfloat16"
    return refuses_width(d_out=g.shape[-1], d_in=x.shape[-1])


def sae_backward(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    extra: Array,
    relu: bool = True,
    *,
    slots: int | None = None,
    split: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """See reference.py. Two-dimensional vals, idx, g, x."""
    n = w_dec.shape[0]
    backward = Backward(w_dec, extra, relu)
    out = latent_pass(by_latent(idx, n), idx, vals, (g, x), backward=backward, slots=slots, split=split)
    dw_dec, dw_enc = out.outputs
    assert out.dvals is not None
    assert out.bias is not None
    return out.dvals, dw_dec.reshape(n, -1), dw_enc.reshape(n, -1), out.bias
