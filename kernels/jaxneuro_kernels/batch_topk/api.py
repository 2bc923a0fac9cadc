# SPDX-License-Identifier: Apache-2.0
"""The public ops and their checks. The candidates of each row come from `topk` and `encode_topk`, and with them the
implementations and the derivative; the selection among all candidates is counting, the same everywhere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..dispatch import Implementation
from ..encode_topk import encode_topk
from ..encode_topk.api import check_encoder
from ..topk import topk
from ..topk.api import check_k
from ..topk.bisect import image, k_largest, original

LEAST = 32
"""Candidates per row at least: with k = 1, some token often wants more than four latents: BatchTopK's point."""


class BatchTopK(NamedTuple):
    """What `batch_topk` returns: m candidates per row, m = min(n_latents, max(slack * k, 32))."""

    vals: Array
    """[..., m], 0 where not kept."""
    idx: Array
    """[..., m] int32, of the candidates, strongest first."""
    threshold: Array
    """Scalar: the smallest value kept, before ReLU. +inf if nothing is."""
    overflow: Array
    """int32 scalar: rows that may hide further members. 0: the result is exact."""


def batch_topk(
    pre: Array,
    k: int,
    *,
    slack: int = 4,
    relu: bool = True,
    valid: Array | None = None,
    k_now: Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    implementation: Implementation = None,
) -> BatchTopK:
    """The tokens * k largest of the whole batch: k per token on average, more where a token needs more.

        keep = the tokens * k largest of pre;   vals = max(pre, 0) where kept

    Each row offers its m largest, m = min(n_latents, max(slack * k, 32)), and exactly tokens * k of all candidates are
    kept; of equal values the first token's, then the lowest index. A row whose last candidate is kept may have more
    such values: `overflow` counts these rows, and where it is 0 the result is exact. (Raise slack where it is not.)

    Args:
      pre: [..., n_latents], floating; leading axes are tokens.
      k: average number per token, 0 <= k <= n_latents.
      slack: candidates per token as a multiple of k.
      relu: clip what is kept at zero.
      valid: bool [...]: tokens that take part; the others count for nothing and keep nothing. None: all.
      k_now: int32 scalar, may be traced, at most k: the average number that is kept. None: k.
      axis_name: inside shard_map, the axis or axes of the mesh over which the batch is split, into equal parts: one
        selection for all of it, threshold and overflow are the same on every shard. None: each shard on its own.
      implementation: of `topk`; see `jaxneuro_kernels`.
    Returns:
      A `BatchTopK`, ready for `sparse_decode(vals, idx, w)`. The derivative reaches pre through the values kept.
    Raises:
      ValueError: k is negative or above n_latents; slack is below 1; pre is no floating array with an axis.
    Source: arXiv:2412.06410.
    Example:
      >>> out = batch_topk(jnp.array([[5.0, 4.0, 3.0], [2.0, 1.0, 0.0]]), 2)
      >>> out.vals.tolist(), float(out.threshold), int(out.overflow)
      ([[5.0, 4.0, 3.0], [2.0, 0.0, 0.0]], 2.0, 0)
    """
    pre = jnp.asarray(pre)
    if not pre.ndim or not jnp.issubdtype(pre.dtype, jnp.floating):
        raise ValueError(f"batch_topk: pre is {pre.dtype}{list(pre.shape)}; give a floating array with an axis.")
    m = _candidates("batch_topk", "pre", pre.shape, k, slack)
    vals, idx = topk(pre, m, implementation=implementation)
    return _select(vals, idx, k, m < pre.shape[-1], relu, valid, k_now, axis_name)


def encode_batch_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    *,
    slack: int = 4,
    relu: bool = True,
    valid: Array | None = None,
    k_now: Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    implementation: Implementation = None,
) -> BatchTopK:
    """`batch_topk` of x w^T + b, without a [tokens, n_latents] array beyond one block of tokens, as in `encode_topk`.

    Args:
      x: [..., d], floating.
      w: [n_latents, d], x's dtype; one latent per row.
      b: [n_latents], floating; added in float32.
      k, slack, relu, valid, k_now, axis_name: see `batch_topk`.
      implementation: of `encode_topk`; see `jaxneuro_kernels`.
    Returns:
      A `BatchTopK`, float32. The derivative reaches x, w and b through the values kept, as in `encode_topk`.
    Raises:
      ValueError: shapes or types that do not fit; k out of range; slack is below 1.
    Example:
      >>> out = encode_batch_topk(jnp.array([[3.0, 2.0], [1.0, -1.0]]), jnp.eye(2), jnp.zeros(2), 1)
      >>> out.vals.tolist(), out.idx.tolist()
      ([[3.0, 2.0], [0.0, 0.0]], [[0, 1], [0, 1]])
    """
    x, w, b = jnp.asarray(x), jnp.asarray(w), jnp.asarray(b)
    check_encoder("encode_batch_topk", x, w, b)
    m = _candidates("encode_batch_topk", "pre-activations", (*x.shape[:-1], w.shape[0]), k, slack)
    vals, idx = encode_topk(x, w, b, m, relu=False, implementation=implementation)
    return _select(vals, idx, k, m < w.shape[0], relu, valid, k_now, axis_name)


def _candidates(op: str, name: str, shape: tuple[int, ...], k: int, slack: int) -> int:
    """How many each row offers."""
    check_k(op, name, shape, k)
    if not isinstance(slack, int | np.integer) or slack < 1:
        raise ValueError(f"{op}: slack = {slack}: it is an int of at least 1.")
    return min(shape[-1], max(int(slack) * int(k), LEAST))


def _select(
    vals: Array,
    idx: Array,
    k: int,
    more: bool,
    relu: bool,
    valid: Array | None,
    k_now: Array | None,
    axis_name: str | tuple[str, ...] | None,
) -> BatchTopK:
    """Keep the tokens * k largest of all rows' candidates (sorted). more: rows have values that are no candidates."""
    tokens, shards = idx.size // max(idx.shape[-1], 1), 1 if axis_name is None else lax.axis_size(axis_name)
    if not tokens * k:
        return BatchTopK(jnp.zeros_like(vals), idx, jnp.array(jnp.inf, vals.dtype), jnp.int32(0))
    key, wanted = image(lax.stop_gradient(vals)), jnp.int32(tokens * shards)
    least, most = (jnp.array(bound, key.dtype) for bound in (jnp.iinfo(key.dtype).min, jnp.iinfo(key.dtype).max))
    if valid is not None:
        key = jnp.where(valid[..., None], key, least)
        wanted = jnp.sum(valid, dtype=jnp.int32)
        wanted = wanted if axis_name is None else lax.psum(wanted, axis_name)
    wanted *= jnp.int32(k) if k_now is None else jnp.minimum(k_now.astype(jnp.int32), k)
    keep = k_largest(key.reshape(-1), wanted, axis_name=axis_name).reshape(idx.shape)
    lowest = jnp.min(jnp.where(keep, key, most))
    overflow = jnp.sum(keep[..., -1], dtype=jnp.int32) * jnp.int32(more)
    if axis_name is not None:
        lowest, overflow = lax.pmin(lowest, axis_name), lax.psum(overflow, axis_name)
    threshold = jnp.where(lowest == most, jnp.array(jnp.inf, vals.dtype), original(lowest, vals.dtype))
    kept = jnp.where(keep, jax.nn.relu(vals) if relu else vals, jnp.zeros((), vals.dtype))
    return BatchTopK(kept, idx, threshold, overflow)
