# SPDX-License-Identifier: Apache-2.0
"""What the backward pass means: dense autodiff of <g, decode(relu(topk(x W^T + b)))>, support fixed."""

import jax
import jax.numpy as jnp
from jax import Array


def sae_backward(
    vals: Array, idx: Array, g: Array, x: Array, w_dec: Array, extra: Array, relu: bool = True
) -> tuple[Array, Array, Array, Array]:
    """(dvals, dw_dec, dw_enc, db_enc), float32."""
    tokens = jnp.arange(idx.shape[0])[:, None]
    vals, g, x, w_dec, extra = (a.astype(jnp.float32) for a in (vals, g, x, w_dec, extra))

    def loss(w_dec, delta):
        z = jnp.zeros((idx.shape[0], w_dec.shape[0])).at[tokens, idx].add(vals + delta)
        return jnp.sum(g * (z @ w_dec)) + jnp.sum(delta * extra)

    dw_dec, dvals = jax.grad(loss, (0, 1))(w_dec, jnp.zeros_like(vals))
    dvals = jnp.where(vals > 0, dvals, 0) if relu else dvals
    dense = jnp.zeros((idx.shape[0], w_dec.shape[0])).at[tokens, idx].add(dvals)
    return dvals, dw_dec, dense.T @ x, dense.sum(0)
