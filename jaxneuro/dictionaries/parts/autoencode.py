# SPDX-License-Identifier: Apache-2.0
"""Encode, select, decode as one function whose gradient is one pass over the active entries."""

import functools
import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels import (
    batch_topk,
    encode_batch_topk,
    encode_group_max,
    encode_topk,
    sae_backward,
    sharded_encode_topk,
    sharded_sae_backward,
    sharded_sparse_decode,
    sparse_decode,
)
from jaxneuro_kernels.dispatch import Implementation
from jaxtyping import Array, Bool, Float, Int

from .axes import Axes

SLACK = 4
"""Candidates per token of BatchTopK, as a multiple of k."""


class Select(NamedTuple):
    """Which latents are on, and how the products are computed; static."""

    k: int
    rule: str = "topk"
    """A key of RULES."""
    dtype: str = "float32"
    """Of the matmul's inputs; sums are float32 in any case."""
    implementation: Implementation = None
    axes: Axes = Axes()


class Parts(NamedTuple):
    """Which part of the reconstruction an entry of the code belongs to: a run of latents, or of ranks; static."""

    by: str
    """"index" (Matryoshka) or "rank" (MultiTopK)."""
    ends: tuple[int, ...]
    """Where each part but the last ends."""


class Code(NamedTuple):
    """The parts of the reconstruction, without its bias, and the latents they were made from."""

    x_hat: Float[Array, "parts n d_out"]
    vals: Float[Array, "n k"]
    """0 where off."""
    idx: Int[Array, "n k"]
    threshold: Float[Array, ""]
    """The smallest pre-activation that a choice over the whole batch has kept; +inf if each token has its own."""


class Chosen(NamedTuple):
    vals: Array
    idx: Array
    threshold: Array | float = jnp.inf


def autoencode(
    x: Float[Array, "n d_in"],
    w_enc: Float[Array, "n_latents d_in"],
    b_enc: Float[Array, "n_latents"],
    w_dec: Float[Array, "n_latents d_out"],
    valid: Bool[Array, "n"],
    k_now: Int[Array, ""],
    select: Select,
    parts: Parts | None = None,
) -> Code:
    """z = relu(selected(x w_enc^T + b_enc));  x_hat = z w_dec, or its parts, whose sum it is.

    Weights have one latent per row: all of them, or with `select.axes.latent` this device's; idx counts all of them.
    Tokens that are not valid have no latent on. k_now <= k is how many are kept. Differentiable once in x and weights,
    with `sae_backward`; use the ops of `jaxneuro_kernels` directly for higher derivatives.
    """
    return _autoencode(x, w_enc, b_enc, w_dec, valid, k_now, select, parts)


def _topk(x: Array, w: Array, b: Array, valid: Array, k_now: Array, s: Select) -> Chosen:
    encode = encode_topk if s.axes.latent is None else functools.partial(sharded_encode_topk, axis_name=s.axes.latent)
    vals, idx = encode(x, w, b, s.k, implementation=s.implementation)
    return Chosen(jnp.where(jnp.arange(s.k, dtype=jnp.int32) < k_now, vals, jnp.float32(0)), idx)


def _batch_topk(x: Array, w: Array, b: Array, valid: Array, k_now: Array, s: Select) -> Chosen:
    whole = {"valid": valid, "k_now": k_now, "axis_name": s.axes.data}
    if s.axes.latent is None:
        out = encode_batch_topk(x, w, b, s.k, slack=SLACK, implementation=s.implementation, **whole)
        return Chosen(out.vals, out.idx, out.threshold)
    m = min(w.shape[0] * lax.axis_size(s.axes.latent), max(SLACK * s.k, 32))  # as many candidates as on one device
    vals, idx = sharded_encode_topk(x, w, b, m, s.axes.latent, relu=False, implementation=s.implementation)
    out = batch_topk(vals, s.k, slack=-(-m // max(s.k, 1)), implementation="xla", **whole)
    return Chosen(out.vals, jnp.take_along_axis(idx, out.idx, axis=-1), out.threshold)


def _group_max(x: Array, w: Array, b: Array, valid: Array, k_now: Array, s: Select) -> Chosen:
    if s.axes.latent is None:
        return Chosen(*encode_group_max(x, w, b, s.k, implementation=s.implementation))
    shards, shard = lax.axis_size(s.axes.latent), lax.axis_index(s.axes.latent)
    vals, idx = encode_group_max(x, w, b, s.k // shards, implementation=s.implementation)
    gathered = (vals, idx + shard * jnp.int32(w.shape[0]))
    return Chosen(*(lax.all_gather(a, s.axes.latent, axis=1, tiled=True, to="invarying") for a in gathered))


RULES: Final[dict[str, Callable[..., Chosen]]] = {"topk": _topk, "batch_topk": _batch_topk, "group_max": _group_max}
"""How latents are selected: the k largest of a token; k per token on average, over the whole batch; the largest of each
of k runs of neighbours (k_now does not apply)."""


def _each(vals: Array, idx: Array, parts: Parts | None) -> list[tuple[Array, Array]]:
    """The code of every part: entries of others are 0 and of latent -1, which is none."""
    if parts is None:
        return [(vals, idx)]
    of = idx if parts.by == "index" else jnp.broadcast_to(jnp.arange(idx.shape[-1], dtype=jnp.int32), idx.shape)
    edges = (0, *parts.ends, jnp.iinfo(jnp.int32).max)
    inside = [(of >= low) & (of < high) for low, high in itertools.pairwise(edges)]
    return [(jnp.where(on, vals, jnp.float32(0)), jnp.where(on, idx, jnp.int32(OFF))) for on in inside]


OFF = jnp.iinfo(jnp.int32).max // 2
"""Index of no latent."""


def _primal(x, w_enc, b_enc, w_dec, valid, k_now, select, parts):
    cast = jnp.dtype(select.dtype)
    vals, idx, threshold = RULES[select.rule](x.astype(cast), w_enc.astype(cast), b_enc, valid, k_now, select)
    vals = jnp.where(valid[:, None], vals, jnp.float32(0))
    x_hat = jnp.stack([_decode(v, i, w_dec.astype(cast), select) for v, i in _each(vals, idx, parts)])
    return Code(x_hat, vals, idx, jnp.asarray(threshold, jnp.float32))


def _decode(vals: Array, idx: Array, w: Array, s: Select) -> Array:
    if s.axes.latent is None:
        return sparse_decode(vals, idx, w, implementation=s.implementation)
    return sharded_sparse_decode(vals, idx, w, s.axes.latent, implementation=s.implementation)


def _forward(x, w_enc, b_enc, w_dec, valid, k_now, select, parts):
    code = _primal(x, w_enc, b_enc, w_dec, valid, k_now, select, parts)
    return code, (x, w_enc, b_enc, w_dec, code.vals, code.idx)


def _backward(select, parts, saved, ct):
    x, w_enc, b_enc, w_dec, vals, idx = saved
    cast = jnp.dtype(select.dtype)
    x_cast, w_cast = x.astype(cast), w_dec.astype(cast)
    backward = sae_backward
    if select.axes.latent is not None:
        backward = functools.partial(sharded_sae_backward, axis_name=select.axes.latent)
    outs = []
    for (v, i), g in zip(_each(vals, idx, parts), ct.x_hat, strict=True):
        dvals = jnp.where(i == OFF, jnp.float32(0), ct.vals)
        outs.append(backward(v, i, g.astype(cast), x_cast, w_cast, dvals=dvals, implementation=select.implementation))
    out = jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *outs)
    dx = _decode(out.dvals, idx, w_enc.astype(cast), select)  # where x is a constant this is not computed
    grads = (dx, x), (out.dw_enc, w_enc), (out.db_enc, b_enc), (out.dw_dec, w_dec)
    return *(g.astype(like.dtype) for g, like in grads), None, None


_autoencode = jax.custom_vjp(_primal, nondiff_argnums=(6, 7))
_autoencode.defvjp(_forward, _backward)
