# SPDX-License-Identifier: Apache-2.0
"""What the backward pass means: dense autodiff of <g, decode(relu(topk(x W^T + b)))>, support fixed."""

import jax
import jax.numpy as jnp
from jax import Array

from .adam import Rows


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


def sae_adam(
    gradients: tuple[Array, Array, Array, Array],
    parameters: Rows,
    first: Rows,
    second: Rows,
    *,
    step: int,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    unit_norm: bool,
) -> tuple[Rows, Rows, Rows, Array]:
    """(parameters, first, second, dvals) after Adam with what `sae_backward` returned; Adam as in arXiv:1412.6980."""
    dvals, dec, enc, bias = gradients
    if unit_norm:
        unit = parameters.w_dec / jnp.linalg.norm(parameters.w_dec, axis=1, keepdims=True)
        dec = dec - unit * jnp.sum(dec * unit, axis=1, keepdims=True)
    moved = []
    for p, m, v, g in zip(parameters, first, second, (enc, bias, dec), strict=True):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
        moved.append((p - learning_rate * m_hat / (jnp.sqrt(v_hat) + eps), m, v))
    p, m, v = (Rows(*(leaf[i] for leaf in moved)) for i in range(3))
    if unit_norm:
        p = p._replace(w_dec=p.w_dec / jnp.linalg.norm(p.w_dec, axis=1, keepdims=True))
    return p, m, v, dvals
