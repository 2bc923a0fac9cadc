# SPDX-License-Identifier: Apache-2.0
"""Matching pursuit as one function, whose gradient needs neither the rounds' residuals nor dense products."""

import functools
from collections.abc import Callable
from typing import Final, NamedTuple

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

from ...taps.compiled import compiled
from .autoencode import Select


class Until(NamedTuple):
    """What makes a token done after a round, before its last; the first round is always taken. Static.

    With any rule a token is also done where c = 0, as it would be in all later rounds.
    """

    tolerance: float = 0.0
    """|r| is below it."""
    repeats: bool = False
    """The round found a latent of an earlier round again; what it adds still counts."""


TO_THE_END: Final = Until()


class Pursuit(NamedTuple):
    """What was found, round by round, and what is left."""

    residual: Float[Array, "*batch d"]
    vals: Float[Array, "*batch k"]
    """At least 0; 0 where a round found nothing."""
    idx: Int[Array, "*batch k"]
    """A latent may be found in several rounds: see `merged`."""


@compiled
def pursue(
    x: Float[Array, "*batch d"], w: Float[Array, "n_latents d"], select: Select, until: Until = TO_THE_END
) -> Pursuit:
    """select.k rounds: r_0 = x;  j = argmax_i <w_i, r>,  c = max(<w_j, r>, 0);  r <- r - c w_j.

    x and w are float32, rows of any norm. `select.dtype` is that of the products <w_i, r> alone: r stays float32, so
    that x = residual + vals w[idx] whatever the dtype. `until` says where a token stops earlier; there are as many
    rounds as the token that needs most takes.

    Differentiable once. On the way back every residual is made again from the one after it, r_t = r_(t+1) + c_t w_jt:
    memory does not grow with tokens x k x d. With `select.axes.latent`, w holds this device's rows and idx counts all.
    """
    return _pursue(x, w, select, until)


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


def _primal(x: Array, w: Array, select: Select, until: Until) -> Pursuit:
    encode, decode, _ = _products(select)
    cast = jnp.dtype(select.dtype)
    rows, no_bias = w.astype(cast), vary(jnp.zeros(w.shape[0], jnp.float32), varying(w))

    def find(r: Array, done: Array | None = None) -> tuple[Array, tuple[Array, Array]]:
        vals, idx = encode(r.astype(cast), rows, no_bias, k=1)
        vals = vals if done is None else jnp.where(done[..., None], jnp.float32(0), vals)
        return r - decode(vals, idx, w), (vals[..., 0], idx[..., 0])

    if any(until):
        return _stopping(x, find, select.k, until)
    r, code = lax.scan(lambda r, _: find(r), x, None, length=select.k)
    return Pursuit(r, *(jnp.moveaxis(a, 0, -1) for a in code))


def _stopping(x: Array, find: Callable[[Array, Array], tuple], k: int, until: Until) -> Pursuit:
    """Rounds until all tokens are done; those not taken are 0 of latent 0."""
    vals, idx = (vary(jnp.zeros((*x.shape[:-1], k), t), varying(x)) for t in (jnp.float32, jnp.int32))

    def unfinished(state: tuple[Array, Array, Pursuit]) -> Array:
        t, done, _ = state
        return (t < k) & ~jnp.all(done)

    def round(state: tuple[Array, Array, Pursuit]) -> tuple[Array, Array, Pursuit]:
        t, done, (r, vals, idx) = state
        r, (c, j) = find(r, done)
        done |= c == 0
        if until.repeats:
            done |= jnp.any((idx == j[..., None]) & (vals > 0), axis=-1)
        if until.tolerance:
            done |= jnp.linalg.norm(r, axis=-1) < jnp.float32(until.tolerance)
        return t + 1, done, Pursuit(r, vals.at[..., t].set(c), idx.at[..., t].set(j))

    done = vary(jnp.zeros(x.shape[:-1], bool), varying(x))
    *_, found = lax.while_loop(unfinished, round, (jnp.int32(0), done, Pursuit(x, vals, idx)))
    return found


def _forward(x: Array, w: Array, select: Select, until: Until) -> tuple[Pursuit, tuple[Pursuit, Array]]:
    out = _primal(x, w, select, until)
    return out, (out, w)


def _backward(select: Select, until: Until, saved: tuple[Pursuit, Array], ct: Pursuit) -> tuple[Array, Array]:
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
