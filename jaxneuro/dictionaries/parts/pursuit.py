# SPDX-License-Identifier: Apache-2.0
"""Matching pursuit as one function, whose gradient needs neither the rounds' residuals nor dense products."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels import (
    encode_topk,
    sae_backward,
    sharded_encode_topk,
    sharded_sae_backward,
    sharded_sparse_decode,
    sparse_decode,
)
from jaxneuro_kernels.vary import vary, varying
from jaxtyping import Array, Float, Int

from .autoencode import Select


class Pursuit(NamedTuple):
    """What was found, round by round, and what is left."""

    residual: Float[Array, "*batch d"]
    vals: Float[Array, "*batch k"]
    """At least 0; 0 where a round found nothing."""
    idx: Int[Array, "*batch k"]
    """A latent may be found in several rounds: see `merged`."""


def pursue(
    x: Float[Array, "*batch d"], w: Float[Array, "n_latents d"], select: Select, tolerance: float = 0.0
) -> Pursuit:
    """select.k rounds: r_0 = x;  j = argmax_i <w_i, r>,  c = max(<w_j, r>, 0);  r <- r - c w_j.

    x and w are float32, rows of norm 1. `select.dtype` is that of the products <w_i, r> alone: r stays float32, so that
    x = residual + vals w[idx] whatever the dtype. Where |r| <= tolerance a token is done; rounds in which all are done
    cost nothing.

    Differentiable once. On the way back every residual is made again from the one after it, r_t = r_(t+1) + c_t w_jt:
    memory does not grow with tokens x k x d. With `select.axes.latent`, w holds this device's rows and idx counts all.
    """
    return _pursue(x, w, select, tolerance)


def _products(select: Select) -> tuple[Callable, Callable, Callable]:
    """Encode, decode, backward."""
    how = {"implementation": select.implementation}
    if select.axes.latent is None:
        ops = encode_topk, sparse_decode, sae_backward
    else:
        ops = sharded_encode_topk, sharded_sparse_decode, sharded_sae_backward
        how["axis_name"] = select.axes.latent
    encode, decode, backward = (functools.partial(op, **how) for op in ops)
    return encode, decode, backward


def _primal(x: Array, w: Array, select: Select, tolerance: float) -> Pursuit:
    encode, decode, _ = _products(select)
    cast = jnp.dtype(select.dtype)
    rows, no_bias = w.astype(cast), vary(jnp.zeros(w.shape[0], jnp.float32), varying(w))

    def find(r: Array) -> tuple[Array, tuple[Array, Array]]:
        vals, idx = encode(r.astype(cast), rows, no_bias, k=1)
        vals = jnp.where(_unfinished(r, tolerance), vals, jnp.float32(0)) if tolerance else vals
        return r - decode(vals, idx, w), (vals[..., 0], idx[..., 0])

    def rest(r: Array) -> tuple[Array, tuple[Array, Array]]:
        return r, (jnp.zeros(r.shape[:-1], jnp.float32), jnp.zeros(r.shape[:-1], jnp.int32))

    def round(r: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        return lax.cond(jnp.any(_unfinished(r, tolerance)), find, rest, r) if tolerance else find(r)

    r, code = lax.scan(round, x, None, length=select.k)
    return Pursuit(r, *(jnp.moveaxis(a, 0, -1) for a in code))


def _unfinished(r: Array, tolerance: float) -> Array:
    return jnp.sum(jnp.square(r), axis=-1, keepdims=True) > jnp.float32(tolerance**2)


def _forward(x: Array, w: Array, select: Select, tolerance: float) -> tuple[Pursuit, tuple[Pursuit, Array]]:
    out = _primal(x, w, select, tolerance)
    return out, (out, w)


def _backward(select: Select, tolerance: float, saved: tuple[Pursuit, Array], ct: Pursuit) -> tuple[Array, Array]:
    """With g = dL/dr after a round: dc = (dL/dc - <g, w_j>) [c > 0];  dL/dr = g + dc w_j;  dL/dw_j = dc r - c g."""
    found, w = saved
    _, decode, backward = _products(select)

    def back(carry: tuple[Array, Array, Array], this: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        r, g, dw = carry
        vals, idx, dvals = (a[..., None] for a in this)
        r = r + decode(vals, idx, w)
        out = backward(vals, idx, -g, r, w, dvals=dvals)
        return (r, g + decode(out.dvals, idx, w), dw + (out.dw_enc + out.dw_dec)), None

    rounds = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), (found.vals, found.idx, ct.vals))
    dw = vary(jnp.zeros_like(w), varying(w))
    (_, dx, dw), _ = lax.scan(back, (found.residual, ct.residual, dw), rounds, reverse=True)
    return dx, dw


_pursue = jax.custom_vjp(_primal, nondiff_argnums=(2, 3))
_pursue.defvjp(_forward, _backward)


def merged(
    vals: Float[Array, "*batch k"], idx: Int[Array, "*batch k"], n_latents: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """The code with every latent named once: its rounds are summed at the first, others become 0 of latent n_latents.

    Example:
      >>> vals, idx = merged(jnp.array([3.0, 2.0, 1.0]), jnp.array([7, 4, 7]), 9)
      >>> vals.tolist(), idx.tolist()
      ([4.0, 2.0, 0.0], [7, 4, 9])
    """
    same = idx[..., :, None] == idx[..., None, :]
    total = jnp.sum(jnp.where(same, vals[..., None, :], jnp.float32(0)), axis=-1)
    again = jnp.any(jnp.tril(same, -1), axis=-1)
    return jnp.where(again, jnp.float32(0), total), jnp.where(again, jnp.int32(n_latents), idx)
