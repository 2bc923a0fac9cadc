# SPDX-License-Identifier: Apache-2.0
"""The public products and their checks. Derivatives: products.py."""

import jax.numpy as jnp
from jax import Array

from ..dispatch import Implementation, choose
from .products import BACKENDS, bind, decode_p, gather_dot_p, row_sum_p, size_of


def sparse_decode(vals: Array, idx: Array, w: Array, *, implementation: Implementation = None) -> Array:
    """Decode a sparse code.

        out[t] = sum_j vals[t, j] w[idx[t, j]]           accumulated in float32, j = 0 first

    Args:
      vals: [..., k], floating.
      idx: [..., k] int32, 0 <= idx < n_latents; an index may occur more than once.
      w: [n_latents, d], floating; one latent per row.
      implementation: see `jaxneuro_kernels`.
    Returns:
      float32 [..., d]. Derivatives: `gather_dot` and `row_sum`, never dense.
    Raises:
      ValueError: shapes or types that do not fit, with the shapes.
    Example:
      >>> w = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> sparse_decode(jnp.array([[2.0, 3.0]]), jnp.array([[1, 0]]), w).tolist()
      [[3.0, 2.0]]
    """
    vals, idx, w = jnp.asarray(vals), jnp.asarray(idx), jnp.asarray(w)
    _check("sparse_decode", vals.shape == idx.shape, ("vals", vals), ("idx", idx), ("w", w))
    choice = choose("sparse_decode", BACKENDS["sparse_decode"], implementation, vals, idx, w, size=size_of(idx, w))
    if 0 in idx.shape:
        return jnp.zeros((*idx.shape[:-1], w.shape[1]), jnp.float32)
    k = idx.shape[-1]
    out = bind(decode_p, vals.reshape(-1, k), idx.reshape(-1, k), w, choice=choice)
    return out.reshape(*idx.shape[:-1], w.shape[1])


def gather_dot(x: Array, idx: Array, w: Array, *, implementation: Implementation = None) -> Array:
    """Products of every token with the rows of its own latents: out[t, j] = <x[t], w[idx[t, j]]>, in float32.

    Args:
      x: [..., d], floating.
      idx: [..., k] int32, 0 <= idx < n_latents.
      w: [n_latents, d], floating.
      implementation: see `jaxneuro_kernels`.
    Returns:
      float32 [..., k].
    Raises:
      ValueError: shapes or types that do not fit, with the shapes.
    Example:
      >>> gather_dot(jnp.array([[1.0, 2.0]]), jnp.array([[1]]), jnp.eye(2)).tolist()
      [[2.0]]
    """
    x, idx, w = jnp.asarray(x), jnp.asarray(idx), jnp.asarray(w)
    fits = x.shape[:-1] == idx.shape[:-1] and x.shape[-1:] == w.shape[1:]
    _check("gather_dot", fits, ("x", x), ("idx", idx), ("w", w))
    choice = choose("gather_dot", BACKENDS["gather_dot"], implementation, x, idx, w, size=size_of(idx, w))
    if 0 in idx.shape:
        return jnp.zeros(idx.shape, jnp.float32)
    d, k = x.shape[-1], idx.shape[-1]
    out = bind(gather_dot_p, x.reshape(-1, d), idx.reshape(-1, k), w, choice=choice)
    return out.reshape(idx.shape)


def row_sum(vals: Array, idx: Array, x: Array, n_latents: int, *, implementation: Implementation = None) -> Array:
    """Per latent, the sum of its tokens: out[f] = sum over idx[t, j] = f of vals[t, j] x[t], in float32.

    In a fixed order: two runs are bitwise equal.

    Args:
      vals: [..., k], floating.
      idx: [..., k] int32, 0 <= idx < n_latents.
      x: [..., d], floating.
      n_latents: rows of the result.
      implementation: see `jaxneuro_kernels`.
    Returns:
      float32 [n_latents, d].
    Raises:
      ValueError: shapes or types that do not fit, with the shapes.
    Example:
      >>> row_sum(jnp.array([[2.0], [3.0]]), jnp.array([[1], [1]]), jnp.eye(2), 2).tolist()
      [[0.0, 0.0], [2.0, 3.0]]
    """
    vals, idx, x = jnp.asarray(vals), jnp.asarray(idx), jnp.asarray(x)
    fits = vals.shape == idx.shape and x.shape[:-1] == idx.shape[:-1] and n_latents > 0
    _check("row_sum", fits, ("vals", vals), ("idx", idx), ("x", x))
    size = size_of(idx, x, n_latents)
    choice = choose("row_sum", BACKENDS["row_sum"], implementation, vals, idx, x, size=size)
    if 0 in idx.shape:
        return jnp.zeros((n_latents, x.shape[-1]), jnp.float32)
    d, k = x.shape[-1], idx.shape[-1]
    return bind(
        row_sum_p, vals.reshape(-1, k), idx.reshape(-1, k), x.reshape(-1, d), n_latents=n_latents, choice=choice
    )


def _check(op: str, fits: bool, *arrays: tuple[str, Array]) -> None:
    """Raise unless the shapes fit, idx is int32 with a last axis, and everything else is floating."""
    for name, a in arrays:
        right = a.dtype == jnp.int32 if name == "idx" else jnp.issubdtype(a.dtype, jnp.floating)
        rank = a.ndim == 2 if name == "w" else a.ndim >= 1
        fits = fits and right and rank
    if not fits:
        shown = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays)
        raise ValueError(
            f"{op}: {shown} do not fit: leading axes are equal, idx is int32, w is [n_latents, d], the rest floating."
        )
