# SPDX-License-Identifier: Apache-2.0
"""The ops for dictionaries that are split by latent: call these inside `jax.shard_map`.

Shard s of the axis has latents s n_local ... (s + 1) n_local - 1: its rows of every weight. Tokens, and the code (vals,
idx) with indices into the whole dictionary, are the same on all shards of this axis (and may be split over another).
What travels is the code: tokens x k x shards values and indices to choose from, and the sum of the decoded parts. Under
check_vma=True results vary over this axis only where they are local rows.

Derivatives are right from outside the shard_map, and with check_vma=True from inside too. (check_vma=False cannot tell
replicated cotangents from partial sums: a gradient taken inside counts each shard's copy of the loss.)
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .dispatch import Implementation
from .encode_topk import encode_topk
from .encode_topk.api import check_encoder
from .sae_backward import SaeGradients, sae_backward
from .sparse_decode import sparse_decode
from .topk import topk
from .topk.api import check_k
from .vary import varying

type Axis = str | tuple[str, ...]
"""Axis or axes of a mesh."""


def sharded_topk(x: Array, k: int, axis_name: Axis, *, implementation: Implementation = None) -> tuple[Array, Array]:
    """`topk` of a last axis that is split over a mesh axis.

    Each shard offers its min(k, n_local) largest, of which the k largest are chosen, on every shard alike. Exact; equal
    values: the lowest global index first.

    Args:
      x: [..., n_local], floating: this shard's part.
      k: how many, 0 <= k <= n_local * shards.
      axis_name: of the shard_map.
      implementation: of `topk`; see `jaxneuro_kernels`.
    Returns:
      (values [..., k] of x's dtype, indices [..., k] int32 into the whole axis).
    Raises:
      ValueError: as `topk`, with the shape of the whole.
    """
    x = jnp.asarray(x)
    n = x.shape[-1] if x.ndim else 0
    check_k("sharded_topk", "x", (*x.shape[:-1], n * lax.axis_size(axis_name)), k)
    return _of_all(*topk(x, min(k, n), implementation=implementation), n, k, axis_name)


def sharded_encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    axis_name: Axis,
    *,
    relu: bool = True,
    implementation: Implementation = None,
) -> tuple[Array, Array]:
    """`encode_topk` with the rows of w and b split over a mesh axis.

    Args:
      x: [..., d], floating, the same on all shards of the axis.
      w: [n_local, d], x's dtype: this shard's rows.
      b: [n_local], floating.
      k: 0 <= k <= n_local * shards.
      axis_name: of the shard_map.
      relu: clip the k values at zero.
      implementation: of `encode_topk`; see `jaxneuro_kernels`.
    Returns:
      (vals float32 [..., k], idx int32 [..., k] into the whole dictionary), as `encode_topk` of all rows.
    Raises:
      ValueError: as `encode_topk`, with the shape of the whole.
    """
    x, w, b = jnp.asarray(x), jnp.asarray(w), jnp.asarray(b)
    check_encoder("sharded_encode_topk", x, w, b)
    n = w.shape[0]
    check_k("sharded_encode_topk", "pre-activations", (*x.shape[:-1], n * lax.axis_size(axis_name)), k)
    vals, idx = encode_topk(x, w, b, min(k, n), relu=False, implementation=implementation)
    vals, idx = _of_all(vals, idx, n, k, axis_name)
    return jax.nn.relu(vals) if relu else vals, idx


def sharded_sparse_decode(
    vals: Array, idx: Array, w: Array, axis_name: Axis, *, implementation: Implementation = None
) -> Array:
    """`sparse_decode` with the rows of w split over a mesh axis: the sum of what each shard decodes of its latents.

    Args:
      vals: [..., k], floating, the same on all shards of the axis.
      idx: [..., k] int32, into the whole dictionary.
      w: [n_local, d], floating: this shard's rows.
      axis_name: of the shard_map.
      implementation: of `sparse_decode`; see `jaxneuro_kernels`.
    Returns:
      float32 [..., d], the same on all shards of the axis.
    Raises:
      ValueError: as `sparse_decode`.
    """
    _, own, local = _own("sharded_sparse_decode", vals, idx, w.shape[0], axis_name)
    return lax.psum(sparse_decode(own, local, w, implementation=implementation), axis_name)


def sharded_sae_backward(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    axis_name: Axis,
    *,
    dvals: Array | None = None,
    relu: bool = True,
    implementation: Implementation = None,
) -> SaeGradients:
    """`sae_backward` with the latents split over a mesh axis.

    Args:
      vals, idx: [..., k], from `sharded_encode_topk`.
      g: [..., d_out], floating, the same on all shards of the axis.
      x: [..., d_in], floating, the same on all shards.
      w_dec: [n_local, d_out], floating: this shard's rows.
      axis_name: of the shard_map.
      dvals: [..., k], a further gradient with respect to vals; None: zero.
      relu: whether vals went through ReLU.
      implementation: of `sae_backward`; see `jaxneuro_kernels`.
    Returns:
      `SaeGradients`: dvals of all k, the same on all shards of the axis; of the rest this shard's rows. Where tokens
      are split over another axis, the rows are sums over this part of the tokens.
    Raises:
      ValueError: as `sae_backward`.
      NotImplementedError: it is differentiated.
    """
    mine, own, local = _own("sharded_sae_backward", vals, idx, w_dec.shape[0], axis_name)
    out = sae_backward(own, local, g, x, w_dec, dvals=dvals, relu=relu, implementation=implementation)
    return out._replace(dvals=lax.psum(jnp.where(mine, out.dvals, jnp.float32(0)), axis_name))


def _of_all(vals: Array, idx: Array, n: int, k: int, axis_name: Axis) -> tuple[Array, Array]:
    """The k largest of all shards' candidates: in order of shards, sorted in each, so equal values by lowest index."""
    idx = idx + lax.axis_index(axis_name) * jnp.int32(n)
    vals, at = topk(_gathered(vals, axis_name), k)
    return vals, jnp.take_along_axis(_gathered(idx, axis_name), at, axis=-1, mode="clip")


def _gathered(a: Array, axis_name: Axis) -> Array:
    """All shards' last axes, one after the other. Under check_vma=False nothing is known to be the same everywhere."""
    tracked = varying(lax.axis_index(axis_name))
    to = "invarying" if tracked else "varying"
    return lax.all_gather(a, axis_name, axis=a.ndim - 1, tiled=True, to=to)


def _own(op: str, vals: Array, idx: Array, n: int, axis_name: Axis) -> tuple[Array, Array, Array]:
    """Which entries are of this shard's latents, and the code of these. Others have value 0, index n: no latent's."""
    if vals.shape != idx.shape or idx.dtype != jnp.int32:
        shown = f"vals {vals.dtype}{list(vals.shape)}, idx {idx.dtype}{list(idx.shape)}"
        raise ValueError(f"{op}: {shown} do not fit: shapes are equal, idx is int32.")
    local = idx - lax.axis_index(axis_name) * jnp.int32(n)
    mine = (local >= 0) & (local < n)
    return mine, jnp.where(mine, vals, jnp.zeros((), vals.dtype)), jnp.where(mine, local, jnp.int32(n))
